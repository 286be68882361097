"""Where the configs are, and a run's own config."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmbench.errors import UserError


def conf_dir() -> Path:
    """The folder of Hydra groups: inside the installed package, else of the checkout."""
    package = Path(__file__).resolve().parent
    in_wheel = package / "conf"
    return in_wheel if in_wheel.is_dir() else package.parents[1] / "conf"


def write_run_config(config: DictConfig, run_dir: Path) -> None:
    """Writes ``config.yaml``, fully resolved: the one config that later commands read.

    Hydra's own ``.hydra/config.yaml`` is rewritten whenever a folder is used again.

    Raises:
        UserError: the folder holds a run already. Hydra names folders by the second, so two
            commands can meet in one.
    """
    path = run_dir / "config.yaml"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(OmegaConf.to_yaml(config, resolve=True))
    except FileExistsError:
        raise UserError(
            f"{run_dir} holds a run already, and a second one would mix with it. Start again, or "
            "name another folder with hydra.run.dir=DIR."
        ) from None


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested plain config under their dotted keys."""
    if not isinstance(config, dict):
        return {prefix: config}
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves
