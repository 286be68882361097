"""The config in a run's directory, read as if it came from a stranger."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lmbench.conf import PLACES, flatten, require_known_targets, takes
from lmbench.errors import UserError
from lmbench.files import read_yaml, replace_text
from lmbench.run.directory import is_run, require_inside

OF_WEIGHTS = ("data", "model", "batching", "loss", "evaluation")
"""Nodes that belong to a run's weights, wherever these are taken."""

OF_THE_MACHINE = ("data.path", "data.cache_dir")
"""Where things lie on this machine: a resume may say so, and the run does not keep it."""

LENGTHS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")

RESUMABLE = (
    *LENGTHS,
    *OF_THE_MACHINE,
    "trainer.accelerator",
    "trainer.precision",
    "float32_matmul_precision",
    "trainer.log_every_n_steps",
    "trainer.check_val_every_n_epoch",
    "trainer.limit_test_batches",
    "trainer.gradient_clip_val",
    "callbacks.checkpoints.interval_minutes",
    "callbacks.nt_asgd.non_monotone_interval",
    "loss.ar_alpha",
    "loss.tar_beta",
    "evaluation.window",
)
"""All that a resume may change. Anything else would make it another run, or the optimizer's state
and the best score so far belong to the value that the run has."""


def read_run_config(run_dir: str | Path, places: Iterable[str] = PLACES) -> dict[str, Any]:
    """The config of a run, as plain values.

    All but ``data.cache_dir``: where the cache lies is a matter of this machine, and the run may
    come from another.

    Args:
        run_dir: The run's directory.
        places: What is going to be built of it; see :data:`lmbench.conf.PLACES`.

    Raises:
        UserError: The folder holds no run; or its config holds an interpolation, or names a class
            that lmbench does not know.
    """
    path = Path(run_dir, "config.yaml")
    if not is_run(run_dir):
        raise UserError(f"{run_dir} is not the directory of a run: it has no config.yaml.")
    config = read_yaml(path)
    for node in OF_WEIGHTS:
        if not isinstance(config.get(node), dict):
            raise UserError(f"{path} is not the config of a run: it has no {node}.")
    for key, value in flatten(config).items():
        if "${" in str(value):  # which lmbench never writes there, and could read anything
            raise UserError(f"{path}: {key} is an interpolation. Replace it by its value.")
    require_known_targets(config, places, str(path))
    if "cache_dir" in config["data"]:
        config["data"]["cache_dir"] = None
    return config


def write_run_config(config: Mapping[str, Any], run_dir: Path, *, replace: bool = False) -> None:
    """Writes ``config.yaml``: the one config that later commands read.

    Hydra's own ``.hydra/config.yaml`` is rewritten whenever a folder is used again. The caller is
    :func:`~lmbench.run.directory.alone_in` the folder.

    Raises:
        UserError: The folder holds a run already, which is not to be replaced. Hydra names folders
            by the second, so two commands can meet in one.
    """
    path = run_dir / "config.yaml"
    if path.exists() and not replace:
        raise UserError(
            f"{run_dir} holds a run already, and a second one would mix with it. Start again, or "
            "name another folder with hydra.run.dir=DIR."
        )
    replace_text(path, OmegaConf.to_yaml(OmegaConf.create(dict(config))))


def plain_config(config: DictConfig) -> dict[str, Any]:
    """A composed config as plain values, without what says how its run begins."""
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    for key in ("resume", "sweep_resume", "init_changes"):
        plain.pop(key, None)
    return plain


def with_places(config: dict[str, Any], places: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with the places of its data as they are on this machine.

    Args:
        config: What :func:`read_run_config` gave; it is changed.
        places: ``path`` and ``cache_dir`` of the data; None leaves what the run has.

    Raises:
        UserError: The run's data has no such place.
    """
    for name, place in places.items():
        if place is not None:
            _set(config, f"data.{name}={place}", f"data.{name}", place)
    return config


def resumed_config(
    run_dir: Path, overrides: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The config with which a run continues: the one place that decides what may change.

    Args:
        run_dir: The run's directory.
        overrides: The command line's.

    Returns:
        The config to continue with, and the config to write when that begins; None where nothing
        is to be kept.

    Raises:
        UserError: See :func:`read_run_config`; an override is not one of :data:`RESUMABLE`; the
            directory holds a link that leads out of it.
    """
    config, kept = read_run_config(run_dir), read_run_config(run_dir)
    require_inside(run_dir)
    is_changed = False
    for override in overrides:
        key, equals, text = override.lstrip("+").partition("=")
        if key == "resume":
            continue
        if key not in RESUMABLE or not equals:
            raise UserError(
                f"{override} cannot be changed in a resume: it would make it another run. What can "
                f"be: {', '.join(RESUMABLE)}. A new run can start from the weights of this one: "
                "init_from=RUN_DIR."
            )
        if key in LENGTHS and config.get("scheduler") and takes(config["scheduler"], "total_steps"):
            raise UserError(
                f"{override} cannot be changed in a resume: the learning rate follows a schedule "
                f"that was made for the whole run ({config['scheduler']['_target_']})."
            )
        value = _value_of(override, key, text)
        _set(config, override, key, value)
        if key not in OF_THE_MACHINE:
            _set(kept, override, key, value)
            is_changed = True
    return config, kept if is_changed else None


def apply_init_from(config: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Takes over what belongs to the weights of the run that ``config.init_from`` names, if any.

    That is its data, model, batching, loss and evaluation, with the single values in them that
    ``config.init_changes`` changes.

    Args:
        config: The composed config.
        overrides: The command line's; those of values in these nodes still win.

    Raises:
        UserError: No folder is named, or it holds no run; an override chooses a node anew;
            ``init_changes`` names other nodes, or there is nothing for it to change.
    """
    changes = config.init_changes
    if not isinstance(changes, DictConfig) or not set(changes) <= set(OF_WEIGHTS):
        raise UserError(
            f"init_changes={changes}: it holds values of {', '.join(OF_WEIGHTS)}, which come with "
            "init_from. Set others themselves."
        )
    if config.init_from is None:
        if changes:
            raise UserError(f"init_changes={changes} needs init_from=RUN_DIR, the run to change.")
        return config
    if config.init_from == "":
        raise UserError("Set init_from=RUN_DIR, the directory of the run to start from.")
    config = config.copy()
    config.init_from = str(config.init_from)  # the job of a sweep has a number for a name
    run = read_run_config(config.init_from)
    values = []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if re.split(r"[./@]", key)[0] not in OF_WEIGHTS:
            continue
        if "." not in key or override.startswith("~"):
            raise UserError(
                f"{override} cannot be combined with init_from={config.init_from}, which "
                f"brings its own {', '.join(OF_WEIGHTS)}. Leave it out; single values "
                "can be set: model.core.…=, or +model.core.…= for what the default model lacks."
            )
        values.append(override.lstrip("+"))
    of_run = OmegaConf.create({node: run[node] for node in OF_WEIGHTS})
    changed = OmegaConf.merge(of_run, changes, OmegaConf.from_dotlist(values))
    for node, content in changed.items():
        config[node] = content
    return config


def _value_of(override: str, key: str, text: str) -> Any:
    if re.fullmatch(r"\d+(:\d+)+", text):  # a time, which YAML would take for a number
        return text
    try:
        change = OmegaConf.from_dotlist([f"{key}={text}"])
        return OmegaConf.select(change, key)
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{override}: {' '.join(str(error).split())}") from error


def _set(config: dict[str, Any], override: str, key: str, value: Any) -> None:
    *parents, name = key.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent)
        if not isinstance(node, dict):
            break
    if not isinstance(node, dict) or name not in node:
        raise UserError(f"{override}: the run has no {key}.")
    node[name] = value
