"""Where the configs are, and a run's own config."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmbench.errors import UserError
from lmbench.files import replace_text
from lmbench.run.config import OF_WEIGHTS, read_config_as_resumed

_NODES = (
    "data",
    "model",
    "optimizer",
    "batching",
    "loss",
    "evaluation",
    "trainer",
    "callbacks",
    "logger",
)
_VALUES = (
    "seed",
    "init_from",
    "float32_matmul_precision",
    *(f"trainer.{key}" for key in ("accelerator", "devices", "max_epochs", "max_steps")),
)
_OF_THE_COMMAND = ("resume", "sweep_resume", "init_changes")
_READ = {
    "model": ("name", "embedding_size", "embedding_dropout", "tied", "core", "head"),
    "evaluation": ("protocol", "columns", "burn_in", "window"),
}


def conf_dir() -> Path:
    """The folder of Hydra groups: inside the installed package, else of the checkout."""
    package = Path(__file__).resolve().parent
    in_wheel = package / "conf"
    return in_wheel if in_wheel.is_dir() else package.parents[1] / "conf"


def take_over_from_run(config: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """What belongs to the weights of the run that ``config.init_from`` names, if it names one.

    That is its data, model, batching, loss and evaluation as its last resume left them, with the
    single values in them that ``config.init_changes`` changes.

    Args:
        config: The composed config.
        overrides: The command line's; those of values in these nodes still win.

    Raises:
        UserError: No folder is named, or it holds no run; an override chooses a node anew;
            ``init_changes`` names other nodes, or there is nothing for it to change.
    """
    changes = config.init_changes
    if not isinstance(changes, DictConfig) or not all(
        key in OF_WEIGHTS and isinstance(node, DictConfig) for key, node in changes.items()
    ):
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
    run = read_config_as_resumed(config.init_from)
    values = []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if re.split(r"[./@]", key)[0] not in OF_WEIGHTS:
            continue
        if "." not in key or override.startswith("~"):
            raise UserError(
                f"{override} does not go with init_from={config.init_from}, which brings its own "
                f"{', '.join(OF_WEIGHTS)}. Leave it out; single values can be set: model.core.…=, "
                "or +model.core.…= for what the default model does not have."
            )
        values.append(override.lstrip("+"))
    of_run = OmegaConf.create({node: run[node] for node in OF_WEIGHTS})
    changed = OmegaConf.merge(of_run, changes, OmegaConf.from_dotlist(values))
    for node, content in changed.items():
        config[node] = content
    return config


def config_of_run(config: DictConfig) -> DictConfig:
    """A composed config without what says how its run begins."""
    keys = [key for key in map(str, config) if key not in _OF_THE_COMMAND]
    return OmegaConf.masked_copy(config, keys)


def require_sound(config: DictConfig, *, is_new: bool) -> None:
    """Refuses a config in which something is missing that every run reads, or that none reads.

    Args:
        config: A run's config.
        is_new: Whether it must hold nothing else, which a new run would not do; those of before may
            hold what was read once. What goes to a class is refused by that.

    Raises:
        UserError: Naming the key.
    """
    for node in _NODES:
        if not isinstance(config.get(node), DictConfig):
            raise UserError(f"{node} is missing, or no node with values. Leave it as it is.")
    values = [*_VALUES, *(f"{node}.{key}" for node, keys in _READ.items() for key in keys)]
    for key in values:
        node, _, name = key.rpartition(".")
        if name not in (config[node] if node else config):
            raise UserError(f"{key} is missing. Leave it as it is, or give it a value.")
    if not is_new:
        return
    for key in config:
        if key not in (*_NODES, *_VALUES, "scheduler"):
            raise UserError(
                f"{key} is read by nothing. Options of the trainer are in trainer: "
                f"+trainer.{key}=…; lmbench-train --help lists the others."
            )
    for key in ("cache", "dynamic"):
        if key in config.evaluation:
            raise UserError(
                f"evaluation.{key} is for lmbench-evaluate, once the model is trained. Train with "
                "evaluation=standard or evaluation=published."
            )
    for node, known in _READ.items():
        for key in config[node]:
            if key not in known:
                raise UserError(f"{node}.{key} is read by nothing. {node} has {', '.join(known)}.")


def write_run_config(config: DictConfig, run_dir: Path) -> None:
    """Writes ``config.yaml``, fully resolved: the one config that later commands read.

    Hydra's own ``.hydra/config.yaml`` is rewritten whenever a folder is used again. The caller is
    :func:`~lmbench.run.directory.alone_in` the folder.

    Raises:
        UserError: The folder holds a run already. Hydra names folders by the second, so two
            commands can meet in one.
    """
    path = run_dir / "config.yaml"
    if path.exists():
        raise UserError(
            f"{run_dir} holds a run already, and a second one would mix with it. Start again, or "
            "name another folder with hydra.run.dir=DIR."
        )
    replace_text(path, OmegaConf.to_yaml(config, resolve=True))


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested plain config under their dotted keys."""
    if not isinstance(config, dict):
        return {prefix: config}
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
