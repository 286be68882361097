"""The config in a run's directory, read as if it came from a stranger."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lmbench.errors import UserError
from lmbench.run.directory import require_no_links

MODEL_TARGETS = {
    "model.core": frozenset({"lmbench.model.core.AWDLSTM", "lmbench.model.core.LSTM"}),
    "model.head": frozenset({"lmbench.model.head.AdaptiveSoftmax", "lmbench.model.head.Softmax"}),
}
"""What may stand at the two places of a model."""

ALLOWED_TARGETS = frozenset(
    {
        "lightning.pytorch.loggers.TensorBoardLogger",
        "lmbench.callbacks.checkpoints.Checkpoints",
        "lmbench.callbacks.finite_loss.FiniteLoss",
        "lmbench.callbacks.metrics_csv.MetricsCSV",
        "lmbench.callbacks.nt_asgd.NTASGD",
        "lmbench.callbacks.progress.Progress",
        "lmbench.callbacks.throughput.Throughput",
        "lmbench.data.corpus.load_text",
        "lmbench.data.published.load_penn_treebank",
        "lmbench.data.published.load_wikitext2",
        "lmbench.data.synthetic.make_corpus",
        *MODEL_TARGETS["model.core"],
        *MODEL_TARGETS["model.head"],
        "lmbench.optim.ASGD",
        "lmbench.optim.PhasedLR",
        "torch.optim.ASGD",
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.OneCycleLR",
        "torch.optim.lr_scheduler.ReduceLROnPlateau",
    }
)
"""What a run's own config may name by ``_target_``; a prefix would let in what a module imports."""

ALLOWED_TARGETS_VARIABLE = "LMBENCH_ALLOWED_TARGETS"
"""Environment variable with more of them, between commas."""

FIXED = ("data", "model", "batching", "optimizer", "scheduler", "init_from", "seed")
"""What a resumed run cannot change: it would be another one, or the checkpoint would win."""

_FIXED_VALUES = (
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

OF_WEIGHTS = ("data", "model", "batching", "loss", "evaluation")
"""Nodes that belong to a run's weights, wherever these are taken."""

PLACES = ("data.path", "data.cache_dir")
"""Where things lie on this machine: what a resume says of them is not recorded."""


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
        _apply(override, config)
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
        if override.lstrip("+~").partition("=")[0] in _FIXED_VALUES:
            raise UserError(
                f"{override} does not go with resume: the best score and the optimizer's state so "
                "far belong to the value that the run has. A new run can start from its weights: "
                "init_from=RUN_DIR."
            )
    for override in new:
        _apply(override, config)
    for place in places:
        _set(place, config)
    return config, new


def places_of(overrides: Iterable[str]) -> list[str]:
    """The overrides that say where things lie on this machine."""
    return [item for item in overrides if item.lstrip("+").partition("=")[0] in PLACES]


def record_overrides(run_dir: Path, overrides: list[str]) -> None:
    """Appends to ``overrides.jsonl`` what a resume changes."""
    if overrides:
        with (run_dir / "overrides.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"overrides": overrides}) + "\n")


def refuse_calls(config: Any, where: str) -> None:
    """Refuses what would call anything but an allowed target, or read what is not in the config.

    Args:
        config: Plain values, as they were read.
        where: What error messages call the place that they come from.

    Raises:
        UserError: Naming the key.
    """
    more = os.environ.get(ALLOWED_TARGETS_VARIABLE, "").split(",")
    allowed = ALLOWED_TARGETS | {target.strip() for target in more if target.strip()}
    for key, value in _leaves(config):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{where}: {key} is an interpolation, which lmbench never writes there and which "
                "could read what is none of its business. Replace it by its value."
            )
        if key.rpartition(".")[2] != "_target_":
            continue
        if not isinstance(value, str) or value not in allowed:
            raise UserError(
                f"{where}: {key} names {value}, and what a run's config names is called. If you "
                f"trust it, set the environment variable {ALLOWED_TARGETS_VARIABLE}={value}."
            )
        if value.startswith("lmbench.data.") and key != "data._target_":  # writes a cache
            raise UserError(f"{where}: {key} names {value}, which belongs at data alone.")
        here = MODEL_TARGETS.get(key.removesuffix("._target_"))
        if here is not None and value in ALLOWED_TARGETS - here:
            raise UserError(f"{where}: {key} names {value}, which does not belong there.")


def _apply(override: str, config: DictConfig) -> None:
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
    _set(override, config)


def _set(override: str, config: DictConfig) -> None:
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


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested lists and dicts; what stands at ``_target_`` is not taken apart."""
    if key.rpartition(".")[2] == "_target_":
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            inner = f"{key}.{name}" if key else str(name)
            yield from _leaves(item, inner)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}[{index}]")
    else:
        yield key, value
