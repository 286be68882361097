"""From config to objects: the only place that knows both.

Every class takes plain arguments; a node's ``_target_`` names the class (or function) and its other
keys are the arguments.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from lmbench.callbacks.checkpoint_io import AtomicCheckpointIO
from lmbench.callbacks.checkpoints import Checkpoints
from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.callbacks.results import Results
from lmbench.callbacks.time_limit import TimeLimit
from lmbench.config import flatten
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError
from lmbench.evaluation.evaluator import Evaluator
from lmbench.evaluation.tuning import Grids
from lmbench.from_config.arguments import (
    call,
    factory,
    import_target,
    require_type,
    takes,
    together,
)
from lmbench.from_config.evaluator import build_evaluator
from lmbench.from_config.model import build_model
from lmbench.from_config.trainer import require_devices, require_end, require_validation
from lmbench.model import LanguageModel
from lmbench.module import LanguageModelModule
from lmbench.optim.asgd import ASGD


def seed_everything(config: DictConfig) -> None:
    """Seeds every random generator with ``config.seed``."""
    require_type("seed", config.seed, int)
    try:
        L.seed_everything(config.seed, verbose=False)
    except ValueError as error:
        raise UserError(f"seed: {error}") from error


def corpus(config: DictConfig) -> Corpus:
    """The corpus of ``config.data``."""
    return _factory(config, "data")()


def datamodule(config: DictConfig, corpus: Corpus) -> LanguageModelDataModule:
    """Windows over a corpus, from ``config.batching`` and ``config.evaluation``."""
    own = {
        "corpus": corpus,
        "evaluation_protocol": config.evaluation.protocol,
        "evaluation_columns": config.evaluation.columns,
        "burn_in": config.evaluation.burn_in,
        "evaluation_window": config.evaluation.window,
        "seed": config.seed,
    }
    arguments = together("batching", _plain(config.batching), own)
    return call(LanguageModelDataModule, "batching", **arguments)


def model(
    config: DictConfig, vocabulary_size: int, train_ids: np.ndarray | None = None
) -> LanguageModel:
    """The language model of ``config.model``.

    Args:
        config: The composed config.
        vocabulary_size: Number of words.
        train_ids: The training split, for heads that order the words by frequency. Not needed if
            a checkpoint is loaded, which has the order in it.
    """
    return build_model(_plain(config.model), vocabulary_size, train_ids)


def module(config: DictConfig, model: LanguageModel) -> LanguageModelModule:
    """The model in training: with its optimizer, schedule and penalties."""
    module = call(
        LanguageModelModule,
        "loss",
        model,
        _factory(config, "optimizer"),
        _scheduler(config) if config.get("scheduler") else None,
        **_plain(config.loss),
    )
    if str(config.trainer.get("precision")) in ("64", "64-true"):
        module.double()  # Lightning's comes after a checkpoint is loaded, which would be rounded
    return module


def trainer(config: DictConfig, run_dir: Path, *, more: Sequence[L.Callback] = ()) -> L.Trainer:
    """The trainer with its callbacks and loggers, writing into ``run_dir``.

    Args:
        config: The composed config.
        run_dir: The folder that takes everything the run writes.
        more: Callbacks beside those of the config.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices found, and adverts
    # Lightning 2.6 calls what torch 2.13 has deprecated, at every epoch.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", message="GPU available but not used")  # also of Apple's
    options = _plain(config.trainer)
    max_time = options.pop("max_time", None)
    require_devices(options["accelerator"], options["devices"])
    require_validation(options)
    if options["accelerator"] == "auto":  # Lightning's would take one without float64
        options["accelerator"] = "cuda" if torch.cuda.is_available() else "cpu"
    results = Results(
        run_dir,
        model_name=config.model.name,
        seed=config.seed,
        hyperparameters=_hyperparameters(config),
        init_from=config.init_from,
    )
    callbacks = _all_in_run_dir(config, "callbacks", run_dir)
    if not any(isinstance(callback, Checkpoints) for callback in callbacks):
        raise UserError(
            "callbacks.checkpoints is missing: without checkpoints there is no best one to test, "
            "and nothing to go on from. To save less often: "
            "callbacks.checkpoints.interval_minutes=60."
        )
    try:
        if max_time is not None:
            callbacks.append(call(TimeLimit, "trainer", max_time=max_time))
        own = {
            "callbacks": [*callbacks, results, *more],
            "plugins": [AtomicCheckpointIO()],
            "logger": _all_in_run_dir(config, "logger", run_dir),
            "default_root_dir": run_dir,
            "enable_progress_bar": sys.stdout is not None and sys.stdout.isatty(),
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,  # it would enter the history of NT-ASGD's trigger
            "reload_dataloaders_every_n_epochs": 1,  # each epoch has its own windows
            "use_distributed_sampler": False,  # each process reads its own columns
        }
        return call(L.Trainer, "trainer", **together("trainer", options, own))
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error


def require_use_of_averages(config: DictConfig, trainer: L.Trainer) -> None:
    """Refuses averaged SGD whose averages are never put in the place of the weights.

    Raises:
        UserError: The trainer has no callback that does so.
    """
    callbacks = cast(list[L.Callback], trainer.callbacks)  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = import_target(config.optimizer._target_)
    averages = isinstance(optimizer, type) and issubclass(optimizer, (ASGD, torch.optim.ASGD))
    if averages and not any(isinstance(callback, NTASGD) for callback in callbacks):
        raise UserError(
            f"optimizer._target_={config.optimizer._target_}: without callbacks.nt_asgd, nothing "
            "would use the averages, and what is tested would be SGD's last iterate. Set "
            "callbacks=nt_asgd, or optimizer=sgd."
        )


def evaluator(
    config: DictConfig, model: LanguageModel, corpus: Corpus, **others: Any
) -> tuple[Evaluator, Grids]:
    """What evaluates a model, from ``config.evaluation``; see :func:`build_evaluator`."""
    return build_evaluator(_plain(config.evaluation), model, corpus, **others)


def _hyperparameters(config: DictConfig) -> dict[str, Any]:
    """What moves the numbers of a run, by dotted keys."""
    plain = _plain(config)
    plain["callbacks"] = {k: v for k, v in plain["callbacks"].items() if k == "nt_asgd"}
    return flatten({node: values for node, values in plain.items() if node != "logger"})


def _plain(node: DictConfig) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def _all_in_run_dir(config: DictConfig, group: str, run_dir: Path) -> list[Any]:
    """The objects of a group, but for those set to null; their folders lie in the run directory."""
    objects = []
    for name, node in config[group].items():
        if node is None:
            continue
        key = f"{group}.{name}"
        _factory(config, key)  # which refuses what is none
        arguments: dict[str, Any] = {}
        for place in ("dirpath", "save_dir"):
            if isinstance(node.get(place), str):
                arguments[place] = run_dir / node[place]
        if node._target_ == f"{Checkpoints.__module__}.{Checkpoints.__name__}":
            _require_usual(node, key)
            arguments["dirpath"] = run_dir / "checkpoints"
        folders = list(arguments.values())
        others = {name: value for name, value in _plain(node).items() if name not in arguments}
        objects.append(made := factory(others, key)(**arguments))
        if isinstance(made, TensorBoardLogger):
            folders.append(made.log_dir)  # its name and version lead somewhere too
        for folder in folders:
            if not Path(folder).resolve().is_relative_to(run_dir.resolve()):
                raise UserError(f"{key} leads out of the run's directory, to {folder}.")
    return objects


def _require_usual(checkpoints: DictConfig, key: str) -> None:
    for name, usual in (("dirpath", "checkpoints"), ("monitor", "val/nll")):
        if checkpoints.get(name, usual) != usual:
            raise UserError(
                f"{key}.{name}={checkpoints[name]}: it is {usual} for every run, as all that reads "
                "one expects. Leave it out."
            )


def _scheduler(config: DictConfig) -> Callable[..., Any]:
    """Makes a schedule; it learns the length of the run if it has an argument for that."""
    make = _factory(config, "scheduler")
    if takes(config.scheduler, "total_steps"):
        require_end(_plain(config.trainer), config.scheduler._target_)

        def make_for(optimizer: Optimizer, total_steps: int | None) -> Any:
            try:
                return make(optimizer, total_steps=total_steps)
            except ZeroDivisionError as error:  # OneCycleLR whose rise is a single step
                raise UserError(
                    f"scheduler: of {total_steps} steps, the rise of the learning rate would be a "
                    "single one. Set scheduler.pct_start=0.0, or another number of steps."
                ) from error

        return make_for
    return lambda optimizer, total_steps: make(optimizer)


def _factory(config: DictConfig, key: str) -> Callable[..., Any]:
    """What makes the object of a node; errors name the node's key."""
    node = OmegaConf.select(config, key)
    return factory(_plain(node) if isinstance(node, DictConfig) else node, key)
