"""The overrides with which a run goes on: what they may change, and the record of them."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lmbench.errors import UserError
from lmbench.run.targets import refuse_calls

FIXED = ("data", "model", "batching", "optimizer", "scheduler", "init_from", "seed")
"""What a resumed run cannot change: it would be another one, or the checkpoint would win."""

FIXED_VALUES = (
    "callbacks.nt_asgd",
    "callbacks.nt_asgd.average_from_start",
    "callbacks.nt_asgd.monitor",
    "evaluation.protocol",
    "evaluation.columns",
    "evaluation.burn_in",
    "trainer.fast_dev_run",
    "trainer.limit_val_batches",
    "trainer.overfit_batches",
)
"""Nor these: the state of the run, and its best score so far, belong to them."""

PLACES = ("data.path", "data.cache_dir")
"""Where things lie on this machine: what a resume says of them is not recorded."""


def places_of(overrides: Iterable[str]) -> list[str]:
    """The overrides that say where things lie on this machine."""
    return [item for item in overrides if item.lstrip("+").partition("=")[0] in PLACES]


def apply_override(override: str, config: DictConfig) -> None:
    """Sets in a run's config what a resume changes.

    Raises:
        UserError: It would make it another run, or there is no such value.
    """
    key, equals, _ = override.lstrip("+~").partition("=")
    names = key.split(".")
    if not equals or len(names) < 2 or override.startswith("~") or names[0] in FIXED:
        raise UserError(
            f"{override} does not go with resume: it would make it another run. Single values "
            f"outside of {', '.join(FIXED)} can be set, such as trainer.max_epochs=…"
        )
    # No brackets: OmegaConf would take [data].path for data.path.
    if not all(name.isidentifier() for name in names) or "_target_" in names:
        raise UserError(f"{override}: only plain values can be set with resume.")
    set_value(override, config)


def set_value(override: str, config: DictConfig) -> None:
    """Sets one value in a run's config.

    Raises:
        UserError: The run has no such value, or it is not to be read or called.
    """
    key = override.lstrip("+").partition("=")[0]
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    if not isinstance(node, DictConfig) or (name not in node and not override.startswith("+")):
        raise UserError(f"{override}: the run has no {key}.")
    try:
        change = override_as_config(override)
        refuse_calls(OmegaConf.to_container(change, resolve=False), override)
        config.merge_with(change)
    except (YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"{override}: {' '.join(str(error).split())}") from error


def override_as_config(override: str) -> DictConfig:
    """The nested config of one override of a command line.

    Raises:
        OmegaConfBaseException: It is none, or no YAML (which has errors of its own).
    """
    key, _, text = override.lstrip("+").partition("=")
    if re.fullmatch(r"\d+(:\d+)+", text):  # a time, which YAML would take for a number
        text = f"'{text}'"
    return OmegaConf.from_dotlist([f"{key}={text}"])


def record_overrides(run_dir: Path, overrides: list[str]) -> None:
    """Appends to ``overrides.jsonl`` what a resume changes."""
    if overrides:
        with (run_dir / "overrides.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"overrides": overrides}) + "\n")


def recorded_overrides(run_dir: Path) -> list[str]:
    """The overrides of all resumes of a run.

    Raises:
        UserError: Their file is damaged.
    """
    path = run_dir / "overrides.jsonl"
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [str(override) for line in lines for override in line["overrides"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Mend it, or take it away.") from error
