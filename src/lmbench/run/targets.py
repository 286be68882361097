"""Locates ``conf/``, and lists the classes that a run's config may name.

In a config, ``_target_`` names the class (or function) that makes an object. What ``conf/`` names
at a place is allowed there, in lmbench's and in those of installed packages, and so are some of
Lightning's own classes; a prefix such as ``lmbench.`` would let in everything that a module
imports.
"""

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmbench.errors import UserError
from lmbench.files import read_yaml

MODEL_PLACES = ("model.core", "model.head")
DATA_PLACES = ("data", "data.tokenizer")
PLACES = (*MODEL_PLACES, *DATA_PLACES, "optimizer", "scheduler", "callbacks", "logger")
"""Groups of ``conf/`` that name classes; ``callbacks`` and ``logger`` hold several objects each."""

ALSO_KNOWN = {
    "callbacks": (
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.ModelSummary",
        "lightning.pytorch.callbacks.RichModelSummary",
        "lightning.pytorch.callbacks.RichProgressBar",
        "lightning.pytorch.callbacks.TQDMProgressBar",
        "lmbench.callbacks.no_dropout.NoDropout",  # of debug=overfit
    ),
    "logger": ("lightning.pytorch.loggers.CSVLogger",),
}
"""Place → classes that a run may name there besides those of ``conf/``; resuming them is tested."""

INSTEAD = {
    "BatchSizeFinder": "Set batching.batch_size.",
    "DeviceStatsMonitor": "callbacks.throughput logs speed and peak memory.",
    "EMAWeightAveraging": "callbacks=weight_average averages the weights.",
    "GradientAccumulationScheduler": "lmbench's schedules take one step per window.",
    "OnExceptionCheckpoint": "lmbench saves a run that is stopped.",
    "LearningRateMonitor": "metrics.csv has the learning rate already.",
    "LearningRateFinder": "hparams_search= searches for a learning rate.",
    "StochasticWeightAveraging": "Its average would never be validated. See callbacks=nt_asgd.",
    "ThroughputMonitor": "callbacks.throughput logs the speed.",
    "Timer": "Set trainer.max_time.",
}
"""Lightning's callback that does not work with lmbench → what to do instead."""

ALLOWED_TARGETS_VARIABLE = "LMBENCH_ALLOWED_TARGETS"
"""Environment variable with the user's own classes, separated by commas."""

ENTRY_POINTS = "lmbench.conf"
"""Group of entry points with which an installed package says that it has a folder ``conf``."""

_allowed: ContextVar[frozenset[str]] = ContextVar("_allowed", default=frozenset())


def conf_dir() -> Path:
    """The folder of Hydra groups: in the installed package, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    in_wheel = package / "conf"
    return in_wheel if in_wheel.is_dir() else package.parents[1] / "conf"


@cache
def conf_dirs() -> tuple[Path, ...]:
    """The folder of Hydra groups, and those of installed packages with parts for lmbench.

    Such a package has an entry point in the group ``lmbench.conf``, whose value is a package's
    name. The package is not imported.
    """
    specs = [find_spec(entry.value) for entry in entry_points(group=ENTRY_POINTS)]
    packages = [path for spec in specs if spec for path in spec.submodule_search_locations or ()]
    return (conf_dir(), *(Path(package, "conf") for package in packages))


def conf_files(group: str) -> list[Path]:
    """The options of a Hydra group, such as ``model/core``; of the same name, lmbench's first."""
    return [path for folder in conf_dirs() for path in sorted((folder / group).glob("*.yaml"))]


@contextmanager
def allowing(targets: Iterable[str]) -> Iterator[None]:
    """Lets configs name these classes, too, everywhere."""
    token = _allowed.set(_allowed.get() | frozenset(targets))
    try:
        yield
    finally:
        _allowed.reset(token)


@cache
def known_targets(place: str) -> frozenset[str]:
    """The classes that a run may name at a place, such as ``model.core``."""
    files = conf_files(place.replace(".", "/"))
    nodes = [node for file in files for _, node in _objects(place, read_yaml(file))]
    named = [str(node["_target_"]) for node in nodes if "_target_" in node]
    return frozenset([*named, *ALSO_KNOWN.get(place, ())])


def require_known_targets(config: Mapping[str, Any], places: Iterable[str], where: str) -> None:
    """Refuses a config that names, at one of the places, a class that is not known there.

    Args:
        config: A run's config, as plain values.
        places: Those of :data:`PLACES` that are going to be built.
        where: What the error message calls the config.

    Raises:
        UserError: Naming the key.
    """
    allowed = {name.strip() for name in os.environ.get(ALLOWED_TARGETS_VARIABLE, "").split(",")}
    allowed |= _allowed.get()
    for place in places:
        node: Any = config
        for name in place.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
        for key, inner in _objects(place, node):
            target = str(inner.get("_target_", ""))
            if target in {"", *known_targets(place), *allowed}:
                continue
            package, _, name = target.rpartition(".")
            if package == "lightning.pytorch.callbacks" and name in INSTEAD:
                raise UserError(
                    f"{where}: {key}: {target} does not work with lmbench. {INSTEAD[name]}"
                )
            known = sorted(known_targets(place))
            meant = [other for other in known if other.rpartition(".")[2] == name]
            meant = meant or difflib.get_close_matches(target, known, n=1, cutoff=0.9)
            did_you_mean = f" Did you mean {meant[0]}?" if meant else ""
            raise UserError(
                f"{where}: {key} names {target}. lmbench does not know this class there, and "
                f"building it would run its code.{did_you_mean} If you trust it, set the "
                f"environment variable {ALLOWED_TARGETS_VARIABLE}={target}; in Python, "
                f"lmbench.load(…, allow=[{target!r}])."
            )


def import_target(target: str) -> Callable[..., Any]:
    """The class or function of a module, by its dotted name."""
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def takes(node: Mapping[str, Any], argument: str) -> bool:
    """Whether the target of a node has an argument of that name."""
    return argument in inspect.signature(import_target(node["_target_"])).parameters


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Single values of a nested config by dotted keys; items of lists by ``key[0]`` and so on."""
    if isinstance(config, dict):
        inner = {f"{prefix}.{key}" if prefix else str(key): config[key] for key in config}
    elif isinstance(config, list) and config:
        inner = {f"{prefix}[{index}]": item for index, item in enumerate(config)}
    else:
        is_plain = config is None or isinstance(config, (str, bool, int, float))
        return {prefix: config if is_plain else str(config)}
    return {key: leaf for name, node in inner.items() for key, leaf in flatten(node, name).items()}


def _objects(place: str, node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The nodes at a place that are built, with their keys."""
    if not isinstance(node, Mapping):
        return
    if place in ("callbacks", "logger"):
        for name, inner in node.items():
            if isinstance(inner, Mapping):
                yield f"{place}.{name}", inner
    else:
        yield place, node
