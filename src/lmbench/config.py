"""Where the configs are, and a run's own config."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmbench.errors import UserError
from lmbench.files import replace_text
from lmbench.run_config import OF_WEIGHTS, read_run_config

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

    That is its data, model, batching, loss and evaluation, with the single values in them that
    ``config.init_changes`` changes.

    Args:
        config: the composed config.
        overrides: of the command line; those of values in these nodes still win.

    Raises:
        UserError: no folder is named, or it holds no run; an override chooses a node anew;
            ``init_changes`` names other nodes, or there is nothing for it to change.
    """
    changes = config.init_changes
    if not isinstance(changes, DictConfig) or any(key not in OF_WEIGHTS for key in changes):
        raise UserError(
            f"init_changes={changes}: it holds values of {', '.join(OF_WEIGHTS)}, which come with "
            "init_from. Set others themselves."
        )
    if config.init_from is None:
        if changes:
            raise UserError(f"init_changes={changes} needs init_from=RUN_DIR, the run to change.")
        return config
    if not config.init_from:
        raise UserError("Set init_from=RUN_DIR, the directory of the run to start from.")
    run = read_run_config(config.init_from)
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
    config = config.copy()
    changed = OmegaConf.merge(of_run, changes, OmegaConf.from_dotlist(values))
    for node, content in changed.items():
        config[node] = content
    return config


def require_known(config: DictConfig) -> None:
    """Refuses what a new run would not read where it is, and so would not do.

    The other nodes are arguments, and what they go to refuses what it does not take.

    Raises:
        UserError: naming the key.
    """
    for node, known in _READ.items():
        for key in config[node]:
            if key not in known:
                raise UserError(f"{node}.{key} is read by nothing. {node} has {', '.join(known)}.")


def write_run_config(config: DictConfig, run_dir: Path) -> None:
    """Writes ``config.yaml``, fully resolved: the one config that later commands read.

    Hydra's own ``.hydra/config.yaml`` is rewritten whenever a folder is used again. The caller is
    :func:`~lmbench.run_dir.alone_in` the folder.

    Raises:
        UserError: the folder holds a run already. Hydra names folders by the second, so two
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
