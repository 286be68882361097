"""The loggers of a run, and when they begin and end recording elsewhere."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from lmbench.callbacks.metrics_csv import MetricsCSV
from lmbench.errors import Interrupted, UserError
from lmbench.files import read_text
from lmbench.instantiate.arguments import factory, require_inside_run, require_unset
from lmbench.run.directory import last_checkpoint
from lmbench.run.targets import import_target, takes

# The other options of these lead out of the run's folder, are set here, or have no effect.
_TENSORBOARD_OPTIONS = ("prefix", "default_hp_metric", "max_queue", "flush_secs")
_WANDB_OPTIONS = (
    "project",
    "name",
    "group",
    "entity",
    "tags",
    "notes",
    "job_type",
    "offline",
    "prefix",
)
_MLFLOW_OPTIONS = ("experiment_name", "run_name", "tags", "prefix", "synchronous")

_MLFLOW_ID = "mlflow_run_id"
"""The file in a run's directory with the id of its run in MLflow, which a resume continues."""


def build_loggers(config: Mapping[str, Any], run_dir: Path) -> list[Logger]:
    """The loggers of the config, except those set to null; they write into the run's directory.

    Raises:
        UserError: A value is wrong or not the config's to set, or a package is missing.
    """
    made = []
    for name, node in config["logger"].items():
        if node is None:
            continue
        key = f"logger.{name}"
        make = factory(node, key)
        kind = import_target(node["_target_"])
        # The run's name in tools. For TensorBoard it names a folder: only what is safe in a shell.
        called = re.sub(r"[^\w.+-]+", "-", f"{config.get('name')}_seed_{config['seed']}")
        if kind is TensorBoardLogger:
            own = {"save_dir": run_dir, "name": called, "version": "", "sub_dir": None}
            _require_options(node, key, _TENSORBOARD_OPTIONS)
        elif kind is WandbLogger:
            make = _tool_logger("wandb", node, key, _WANDB_OPTIONS, ("name", called))
            own = {"save_dir": run_dir, "id": _wandb_id(run_dir)}
        elif kind is MLFlowLogger:
            make = _tool_logger("mlflow", node, key, _MLFLOW_OPTIONS, ("run_name", called))
            uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
            own = {"tracking_uri": uri, "run_id": _mlflow_id(run_dir)}
        else:
            if kind is CSVLogger:
                require_inside_run(node, key)
                require_unset(key, node, ("version",))  # with one, a resume begins its file anew
            own = {"save_dir": run_dir} if takes(node, "save_dir") else {}
        made.append(make(**own))
    return made


@contextmanager
def recording(trainer: L.Trainer, config: Mapping[str, Any], run_dir: Path) -> Iterator[None]:
    """Begins recording by W&B or MLflow, with the run's config, and ends it.

    Without an end, W&B would record the next job of a sweep as the same run.

    Raises:
        UserError: W&B or MLflow refuses something.
    """
    kinds = (MetricsCSV, TensorBoardLogger)
    others = [x for x in trainer.loggers if trainer.is_global_zero and not isinstance(x, kinds)]
    begun: list[Logger] = []
    try:
        with _ended(begun):
            for logger in others:
                _begin(logger, config, run_dir)
                begun.append(logger)
            yield
    except Exception as error:
        tool = type(error).__module__.partition(".")[0]
        if tool not in ("wandb", "mlflow"):
            raise
        offline = " Without a network: logger.wandb.offline=true." if tool == "wandb" else ""
        raise UserError(f"logger.{tool}: {' '.join(str(error).split())}{offline}") from error


@contextmanager
def _ended(loggers: Sequence[Any]) -> Iterator[None]:
    exit_code, status = 0, "FINISHED"
    try:
        yield
    except BaseException as error:
        is_stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
        exit_code, status = (130, "KILLED") if is_stopped else (1, "FAILED")
        raise
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=exit_code)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.set_terminated(logger.run_id, status)


def _begin(logger: Any, config: Mapping[str, Any], run_dir: Path) -> None:
    if isinstance(logger, MLFlowLogger):
        path = run_dir / _MLFLOW_ID
        if path.exists():  # MLflow does not let a resume change the values it has
            logger.experiment.update_run(logger.run_id, status="RUNNING")
            return
        path.write_text(f"{logger.run_id}\n", "ascii")
    logger.log_hyperparams(dict(config))
    for link in run_dir.glob("wandb/*/logs/debug-core.log"):  # to W&B's cache, outside the run
        if link.is_symlink():
            link.unlink()


def _require_options(node: Mapping[str, Any], key: str, names: Sequence[str]) -> None:
    for name in node:
        if name not in ("_target_", *names):
            raise UserError(f"{key}.{name} cannot be set. Choose from {', '.join(names)}.")


def _tool_logger(
    package: str, node: Mapping[str, Any], key: str, names: Sequence[str], called: tuple[str, str]
) -> Callable[..., Any]:
    """Makes a logger of a package that may be missing; ``called`` is its name for the run."""
    _require_options(node, key, names)
    if find_spec(package) is None:
        raise UserError(
            f"{key} needs {package}: pip install {package}, or in the checkout "
            f"pip install -e '.[{package}]'."
        )
    argument, name = called
    return factory({**node, argument: node.get(argument) or name}, key)


def _wandb_id(run_dir: Path) -> str | None:
    """The id of the W&B run that this one continues, from the folders that W&B makes."""
    if last_checkpoint(run_dir) is None:  # it begins anew, there too
        return None
    ids = {}
    for folder in run_dir.glob("wandb/*run-*"):
        if match := re.fullmatch(r"(?:offline-)?run-(\d+_\d+)-(\w+)", folder.name):
            ids[match[1]] = match[2]
    return ids[max(ids)] if ids else None


def _mlflow_id(run_dir: Path) -> str | None:
    path = run_dir / _MLFLOW_ID
    if last_checkpoint(run_dir) is None or not path.exists():
        return None
    return read_text(path).strip()
