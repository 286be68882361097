"""From config to objects: the only place that knows both.

Every class takes plain arguments; a node's ``_target_`` names the class (or function) and its other
keys are the arguments.
"""

import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra.utils import get_object
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from lmbench.arguments import call, require_devices, require_type, require_validation
from lmbench.callbacks.results import Results
from lmbench.checkpoint import AtomicCheckpointIO
from lmbench.config import flatten
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError
from lmbench.machine import float32_matmul_precision
from lmbench.model import Embedding, LanguageModel
from lmbench.module import LanguageModelModule

# Arguments that the config has under another key than their node's.
_KEYS = {
    "batching.evaluation_protocol": "evaluation.protocol",
    "batching.evaluation_columns": "evaluation.columns",
    "batching.burn_in": "evaluation.burn_in",
    "batching.evaluation_window": "evaluation.window",
    "batching.seed": "seed",
    "model.dropout": "model.embedding_dropout",
    "model.core.input_size": "model.embedding_size",
}


def seed_everything(config: DictConfig) -> None:
    """Seeds every random generator with ``config.seed``."""
    require_type("seed", config.seed, int)
    try:
        L.seed_everything(config.seed, verbose=False)
    except ValueError as error:
        raise UserError(f"seed: {error}") from error


def set_matmul_precision(config: DictConfig) -> None:
    """How PyTorch multiplies matrices of float32, from ``config.float32_matmul_precision``.

    ``auto`` is ``highest``, and on a CPU the faster ``medium`` where that is as exact.
    """
    precision, choices = config.float32_matmul_precision, ("auto", "highest", "high", "medium")
    if precision not in choices:
        raise UserError(
            f"float32_matmul_precision={precision!r} is none of {', '.join(choices)} (see "
            "torch.set_float32_matmul_precision)."
        )
    if precision == "auto":
        accelerator = config.trainer.accelerator
        on_cpu = accelerator == "cpu" or (
            accelerator == "auto" and not torch.accelerator.is_available()
        )
        precision = float32_matmul_precision() if on_cpu else "highest"
    torch.set_float32_matmul_precision(precision)
    # For cuDNN's LSTM the default is TF32, whatever is said about products.
    torch.backends.cudnn.allow_tf32 = precision != "highest"


def corpus(config: DictConfig) -> Corpus:
    """The corpus of ``config.data``."""
    return _factory(config, "data")()


def datamodule(config: DictConfig, corpus: Corpus) -> LanguageModelDataModule:
    """Windows over a corpus, from ``config.batching`` and ``config.evaluation``."""
    return call(
        LanguageModelDataModule,
        "batching",
        _KEYS,
        corpus=corpus,
        **_plain(config.batching),
        evaluation_protocol=config.evaluation.protocol,
        evaluation_columns=config.evaluation.columns,
        burn_in=config.evaluation.burn_in,
        evaluation_window=config.evaluation.window,
        seed=config.seed,
    )


def model(
    config: DictConfig, vocabulary_size: int, train_ids: np.ndarray | None = None
) -> LanguageModel:
    """The language model of ``config.model``.

    Args:
        config: the composed config.
        vocabulary_size: number of words.
        train_ids: the training split, for heads that order the words by frequency. Not needed if
            a checkpoint is loaded, which has the order in it.
    """
    node = config.model
    embedding = call(
        Embedding,
        "model",
        _KEYS,
        vocabulary_size=vocabulary_size,
        embedding_size=node.embedding_size,
        dropout=node.embedding_dropout,
    )
    core = _factory(config, "model.core")(input_size=node.embedding_size)
    make_head = _factory(config, "model.head")
    of_corpus = {}
    if train_ids is not None and _takes(node.head, "counts"):
        # In parts, since bincount makes an int64 copy of what it counts.
        parts = np.array_split(train_ids, 1 + len(train_ids) // 2**24)
        of_corpus["counts"] = sum(np.bincount(part, minlength=vocabulary_size) for part in parts)
    head = make_head(input_size=core.output_size, vocabulary_size=vocabulary_size, **of_corpus)
    return call(LanguageModel, "model", _KEYS, embedding, core, head, tied=node.tied)


def module(config: DictConfig, model: LanguageModel) -> LanguageModelModule:
    """The model in training: with its optimizer, schedule and penalties."""
    scheduler = _scheduler(config) if config.get("scheduler") else None
    return call(
        LanguageModelModule,
        "loss",
        _KEYS,
        model,
        _factory(config, "optimizer"),
        scheduler,
        **_plain(config.loss),
    )


def trainer(
    config: DictConfig, run_dir: Path, *, more: Sequence[L.Callback] = (), first_step: int = 0
) -> L.Trainer:
    """The trainer with its callbacks and loggers, writing into ``run_dir``.

    Args:
        config: the composed config.
        run_dir: the folder that takes everything the run writes.
        more: callbacks beside those of the config.
        first_step: where a resumed run goes on; TensorBoard forgets what came later.
    """
    options = _plain(config.trainer)
    require_devices(options["accelerator"], options["devices"])
    require_validation(options)
    results = Results(
        run_dir,
        model_name=config.model.name,
        seed=config.seed,
        hyperparameters=flatten(_plain(config)),
        init_from=config.init_from,
    )
    callbacks = _all_in_run_dir(config, "callbacks", run_dir)
    loggers = _all_in_run_dir(config, "logger", run_dir, purge_step=first_step or None)
    return call(
        L.Trainer,
        "trainer",
        _KEYS,
        **options,
        callbacks=[*callbacks, results, *more],
        plugins=[AtomicCheckpointIO()],
        logger=loggers,
        default_root_dir=run_dir,
        enable_progress_bar=sys.stdout.isatty(),
        enable_model_summary=False,
        num_sanity_val_steps=0,  # it would enter the history of NT-ASGD's trigger
        reload_dataloaders_every_n_epochs=1,  # each epoch has its own windows
        use_distributed_sampler=False,  # each process reads its own columns
    )


def _plain(node: DictConfig) -> dict[str, Any]:
    return typing.cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def _all_in_run_dir(
    config: DictConfig, group: str, run_dir: Path, purge_step: int | None = None
) -> list[Any]:
    """The objects of a group, but for those set to null; their folders lie in the run directory."""
    objects = []
    for name, node in config[group].items():
        if node is None:
            continue
        make = _factory(config, f"{group}.{name}")
        arguments: dict[str, Any] = {
            key: run_dir / node[key]
            for key in ("dirpath", "save_dir")
            if isinstance(node.get(key), str)
        }
        folders = list(arguments.values())
        if node._target_.endswith(".TensorBoardLogger"):
            arguments["purge_step"] = purge_step
        made = make(**arguments)
        if isinstance(made, TensorBoardLogger):
            folders.append(made.log_dir)  # its name and version lead somewhere too
        for folder in folders:
            if not Path(folder).resolve().is_relative_to(run_dir.resolve()):
                raise UserError(f"{group}.{name} leads out of the run's directory, to {folder}.")
        objects.append(made)
    return objects


def _scheduler(config: DictConfig) -> Callable[..., Any]:
    """Makes a schedule; it learns the length of the run if it has an argument for that."""
    factory = _factory(config, "scheduler")
    if _takes(config.scheduler, "total_steps"):
        return factory
    return lambda optimizer, total_steps: factory(optimizer)


def _takes(node: DictConfig, argument: str) -> bool:
    return argument in inspect.signature(get_object(node._target_)).parameters


def _factory(config: DictConfig, key: str) -> Callable[..., Any]:
    """What makes the object of a node; errors name the node's key."""
    node = OmegaConf.select(config, key)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        group = key.replace(".", "/")
        raise UserError(
            f"{key}={node} names no class to build. An option of a group is chosen with a slash: "
            f"{group}=NAME; lmbench-train --help lists them."
        )
    for missing in OmegaConf.missing_keys(node):
        raise UserError(f"{missing} has no default: set {missing}=…")
    arguments = _plain(node)
    try:
        target = get_object(arguments.pop("_target_"))
    except ImportError as error:
        raise UserError(f"{key}._target_: {error}") from error

    def make(*args: Any, **kwargs: Any) -> Any:
        return call(target, key, _KEYS, *args, **(arguments | kwargs))

    return make
