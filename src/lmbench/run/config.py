"""The config in a run's directory, read as if it came from a stranger."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from lmbench.errors import UserError
from lmbench.files import read_yaml, replace_text
from lmbench.run.directory import require_no_run, require_run
from lmbench.run.targets import PLACES, flatten, require_known_targets

INHERITED_NODES = ("data", "model", "batching", "loss", "evaluation")
"""Nodes that belong to a run's weights, wherever these are taken."""

MACHINE_KEYS = ("data.path", "data.cache_dir")
"""Where things are on this machine: a resume may set these, and the run does not keep them."""


def read_run_config(run_dir: str | Path, places: Iterable[str] = PLACES) -> dict[str, Any]:
    """The config of a run, as plain values.

    All but ``data.cache_dir``: where the cache is depends on this machine, and the run may come
    from another.

    Args:
        run_dir: The run's directory.
        places: What is going to be built from it; see :data:`lmbench.run.targets.PLACES`.

    Raises:
        UserError: The folder holds no run; or its config holds an interpolation, or names a class
            that lmbench does not know.
    """
    path = Path(run_dir, "config.yaml")
    require_run(Path(run_dir))
    config = read_yaml(path)
    for node in INHERITED_NODES:
        if not isinstance(config.get(node), dict):
            raise UserError(f"{path} is not the config of a run: it has no {node}.")
    for key, value in flatten(config).items():
        if "${" in str(value):  # lmbench never writes one there; it could read anything
            raise UserError(f"{path}: {key} is an interpolation. Replace it with its value.")
    require_known_targets(config, places, str(path))
    if "cache_dir" in config["data"]:
        config["data"]["cache_dir"] = None
    return config


def write_run_config(
    config: Mapping[str, Any], run_dir: Path, overrides: Sequence[str] = ()
) -> None:
    """Writes the config and the overrides of a new run.

    The caller must be :func:`lmbench.run.directory.alone_in` the folder.

    Raises:
        UserError: The folder holds a run already, or what looks like one. Hydra names folders by
            the second, so two commands can end up in one.
    """
    require_no_run(run_dir)
    note = json.dumps({"overrides": list(overrides)}, ensure_ascii=False)
    replace_text(run_dir / "overrides.json", note + "\n")
    replace_run_config(config, run_dir)


def replace_run_config(config: Mapping[str, Any], run_dir: Path) -> None:
    """Writes ``config.yaml``: the one config that later commands read."""
    replace_text(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))


def plain_config(config: DictConfig) -> dict[str, Any]:
    """A composed config as plain values, without the keys that say how its run begins."""
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    for key in ("resume", "sweep_resume"):
        plain.pop(key, None)
    return plain


def model_name(model: Mapping[str, Any]) -> str:
    """A model's name and, if the name does not say it, the class of its core.

    >>> model_name({"name": "awd_lstm", "core": {"_target_": "lmbench.model.core.AWDLSTM"}})
    'awd_lstm'
    >>> model_name({"name": "awd_lstm", "core": {"_target_": "lmbench.model.core.GRU"}})
    'awd_lstm (GRU)'
    """
    name = str(model.get("name", ""))
    core = str(model.get("core", {}).get("_target_", "")).rpartition(".")[2]
    is_said = not core or core.lower() == name.replace("_", "").lower()
    return name if is_said else f"{name} ({core})"


def set_value(config: dict[str, Any], override: str, key: str, value: Any) -> None:
    """Changes one value in place.

    Args:
        config: What :func:`read_run_config` returned.
        override: What was asked for, to be named in errors.
        key: The dotted key.
        value: The new value, plain.

    Raises:
        UserError: There is no such key.
    """
    *parents, name = key.split(".")
    try:
        node = reduce(getitem, parents, config)
        node[name]  # it must be there
    except (KeyError, TypeError) as error:
        raise UserError(f"{override}: the run has no {key}.") from error
    node[name] = value
