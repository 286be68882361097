"""The config in a run's directory, read as if it came from a stranger."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lmbench.errors import UserError
from lmbench.run.directory import require_no_links
from lmbench.run.overrides import (
    FIXED_VALUES,
    apply_override,
    places_of,
    recorded_overrides,
    set_value,
)
from lmbench.run.targets import refuse_calls

OF_WEIGHTS = ("data", "model", "batching", "loss", "evaluation")
"""Nodes that belong to a run's weights, wherever these are taken."""


def read_run_config(run_dir: str | Path) -> DictConfig:
    """The config that a run was made with, as plain values.

    All but ``data.cache_dir``: where the cache lies is a matter of this machine, and the run may
    come from another.

    Raises:
        UserError: The folder holds no run; or its config holds an interpolation, or names something
            to be called that is not among the allowed targets.
    """
    path = Path(run_dir, "config.yaml")
    try:
        if not path.is_file():
            raise UserError(f"{run_dir} is not the directory of a run: it has no config.yaml.")
        config = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{path} is no config of a run: it holds no keys.")
    refuse_calls(OmegaConf.to_container(config, resolve=False), str(path))
    for node in OF_WEIGHTS:
        if not isinstance(config.get(node), DictConfig):
            raise UserError(f"{path} is no config of a run: it has no {node}.")
    if "cache_dir" in config.data:
        config.data.cache_dir = None
    return config


def read_config_as_resumed(run_dir: str | Path) -> DictConfig:
    """The config of a run with all that its resumes have changed.

    Raises:
        UserError: See :func:`read_run_config` and :func:`recorded_overrides`.
    """
    config = read_run_config(run_dir)
    for override in recorded_overrides(Path(run_dir)):
        apply_override(override, config)
    return config


def with_places(config: DictConfig, places: Mapping[str, Any]) -> DictConfig:
    """A run's config with the places of its data as they are on this machine.

    Args:
        config: What :func:`read_run_config` gave.
        places: ``path`` and ``cache_dir`` of the data; None leaves what the run has.

    Raises:
        UserError: The run's data has no such place.
    """
    config = config.copy()
    for name, place in places.items():
        if place is None:
            continue
        if name not in config.data:
            raise UserError(
                f"data.{name}={place}: the run's data ({config.data.get('_target_')}) has no "
                f"{name}. Leave it out."
            )
        config.data[name] = place
    return config


def resumed_config(run_dir: Path, overrides: Iterable[str]) -> tuple[DictConfig, list[str]]:
    """The config of a run that goes on, with the overrides of all its resumes.

    Args:
        run_dir: The run's directory.
        overrides: This command line's.

    Returns:
        The config, and the overrides that are new and belong to the run.

    Raises:
        UserError: See :func:`read_run_config`; or an override would make it another run, or the
            directory holds a link.
    """
    config = read_config_as_resumed(run_dir)
    require_no_links(run_dir)
    given = [override for override in overrides if not override.startswith("resume=")]
    places = places_of(given)
    new = [override for override in given if override not in places]
    for override in new:  # earlier resumes may have changed them when they could
        if override.lstrip("+~").partition("=")[0] in FIXED_VALUES:
            raise UserError(
                f"{override} does not go with resume: the best score and the optimizer's state so "
                "far belong to the value that the run has. A new run can start from its weights: "
                "init_from=RUN_DIR."
            )
    for override in new:
        apply_override(override, config)
    for place in places:
        set_value(place, config)
    return config, new
