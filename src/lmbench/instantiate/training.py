"""Everything that a training is made of, from a run's config."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from lmbench.callbacks.checkpoints import CheckpointIO
from lmbench.callbacks.results import Results
from lmbench.callbacks.time_limit import TimeLimit
from lmbench.data.columns import EvaluationSettings
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError
from lmbench.instantiate._callbacks import build_callbacks
from lmbench.instantiate.arguments import call, convert, factory
from lmbench.instantiate.loggers import build_loggers
from lmbench.machine import require_devices
from lmbench.model import LanguageModel
from lmbench.run.targets import import_target, takes
from lmbench.training.lightning_internals import quieten_lightning
from lmbench.training.module import TRAINER_OPTIONS, LanguageModelModule

_NODES = ("data", "model", "optimizer", "batching", "loss", "evaluation", "trainer", "callbacks")
_NODES += ("logger",)
_KEYS = (*_NODES, "seed", "init_from", "float32_matmul_precision")
_MOST_EPOCHS = 10_000
"""The windows of all epochs are counted before the first step, in some milliseconds per
epoch."""

_PROFILERS = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}

# Those that lmbench itself reads; the others have defaults in Lightning.
_TRAINER_KEYS = tuple(
    f"trainer.{name}" for name in ("accelerator", "devices", "precision", "max_epochs", "max_steps")
)


def require_known_keys(config: Mapping[str, Any]) -> None:
    """Refuses keys that nothing reads, which would silently do nothing, and missing ones.

    Raises:
        UserError: Naming the key.
    """
    values = {**config, **{f"trainer.{name}": x for name, x in config["trainer"].items()}}
    for key in (*_KEYS, *_TRAINER_KEYS):
        if key not in values or (key in _NODES and not isinstance(values[key], dict)):
            raise UserError(f"{key} is missing or empty. Keep its default.")
    for key in (key for key in config if key not in ("name", "scheduler")):
        if key not in _KEYS:
            raise UserError(
                f"{key} is not an option. Those of Lightning's Trainer are set as "
                f"+trainer.{key}=…; lmbench-train --help lists the others."
            )


def seed_everything(config: Mapping[str, Any]) -> None:
    """Seeds every random generator with ``config.seed``."""
    seed = convert("seed", config["seed"], int)
    call(L.seed_everything, "seed", {}, seed, verbose=False)


def datamodule(config: Mapping[str, Any], corpus: Corpus) -> LanguageModelDataModule:
    """Windows over a corpus, from ``config.batching`` and ``config.evaluation``.

    Raises:
        UserError: The evaluation is one for lmbench-evaluate, or a value is wrong.
    """
    for name, value in config["evaluation"].items():
        if isinstance(value, dict) or name == "pairs":
            raise UserError(
                f"evaluation.{name} is not for training, which takes evaluation=standard or "
                "awd_lstm_lm. Afterwards: lmbench-evaluate RUN_DIR evaluation=…"
            )
    return call(
        LanguageModelDataModule,
        "batching",
        config["batching"],
        corpus=corpus,
        evaluation=call(EvaluationSettings, "evaluation", config["evaluation"]),
        seed=config["seed"],
    )


def module(config: Mapping[str, Any], model: LanguageModel) -> LanguageModelModule:
    """The model in training: with its optimizer, schedule and penalties."""
    make_optimizer = factory(config["optimizer"], "optimizer")
    make_optimizer(model.parameters())  # so that a wrong value is refused before a run is written
    module = call(
        LanguageModelModule,
        "loss",
        config["loss"],
        model,
        make_optimizer,
        _scheduler(config) if config.get("scheduler") else None,
    )
    if str(config["trainer"].get("precision")) in ("64", "64-true"):
        module.double()  # Lightning does so only after loading a checkpoint, which it would round
    return module


def trainer(
    config: Mapping[str, Any],
    run_dir: Path,
    *,
    more: Sequence[L.Callback] = (),
) -> L.Trainer:
    """The trainer with its callbacks and loggers, writing into ``run_dir``.

    Args:
        config: A run's config.
        run_dir: The folder that takes everything the run writes.
        more: Callbacks besides those of the config.
    """
    quieten_lightning()
    options = dict(config["trainer"])
    max_time = options.pop("max_time", None)
    options["accelerator"] = require_devices(
        options["accelerator"], options["devices"], options.get("num_nodes", 1)
    )
    _require_training(options)
    profiler = options.pop("profiler", None)
    if profiler in _PROFILERS:  # given by name, it would write nowhere
        profiler = _PROFILERS[profiler](dirpath=run_dir, filename="profile")
    callbacks = build_callbacks(config, run_dir)
    if max_time is not None:
        callbacks.append(call(TimeLimit, "trainer", {"max_time": max_time}))
    return call(
        L.Trainer,
        "trainer",
        options,
        profiler=profiler,
        callbacks=[*callbacks, Results(run_dir, config), *more],
        plugins=[CheckpointIO()],
        logger=build_loggers(config, run_dir),
        default_root_dir=run_dir,
        # callbacks.progress has a better one
        enable_progress_bar=any(isinstance(x, ProgressBar) for x in callbacks),
        enable_model_summary=False,
        **TRAINER_OPTIONS,
    )


def _require_training(options: Mapping[str, Any]) -> None:
    """Refuses options of the trainer with which a run would not do what it should."""
    for name, only in (("accumulate_grad_batches", 1), ("val_check_interval", 1.0)):
        value = options.get(name)
        if value is not None and (type(value), value) != (type(only), only):  # 1 is not 1.0 there
            raise UserError(
                f"trainer.{name}={value} does not work with lmbench: its schedules take one step "
                "per window, and its best checkpoint is that of an epoch's end. Set "
                "batching.batch_size, or trainer.check_val_every_n_epoch."
            )
    max_epochs = options.get("max_epochs")
    if isinstance(max_epochs, int) and max_epochs > _MOST_EPOCHS:
        raise UserError(
            f"trainer.max_epochs={max_epochs} is more than {_MOST_EPOCHS:,}. For no "
            "limit, set it to -1, and trainer.max_time or trainer.max_steps."
        )
    if str(options.get("precision")) == "16-true":
        raise UserError(
            "trainer.precision=16-true: without scaling, small gradients and Adam's epsilon are 0 "
            "in float16. Set trainer.precision=bf16-true or, on a GPU, 16-mixed."
        )
    lengths = ("max_epochs", "max_steps", "limit_train_batches", "limit_val_batches")
    for name in ("check_val_every_n_epoch", *lengths):
        value = options.get(name, 1)
        if value == 0 or (value is None and name == "check_val_every_n_epoch"):
            raise UserError(
                f"trainer.{name}={value}: the best checkpoint is chosen by validations at the end "
                "of epochs. Set it to 1 or more, or leave it out."
            )


def _scheduler(config: Mapping[str, Any]) -> Callable[..., Any]:
    """What makes the schedule, given the length of the run if it has an argument for that."""
    node, options = config["scheduler"], config["trainer"]
    make = factory(node, "scheduler")
    if not takes(node, "total_steps"):
        return lambda optimizer, total_steps: make(optimizer)
    if options.get("max_time") is not None:
        if not getattr(import_target(node["_target_"]), "follows_time", False):
            raise UserError(
                f"scheduler: {node['_target_']} counts steps, and trainer.max_time would cut it "
                "off. Use optimizer=adam scheduler=phases_awd_lstm, which follows the time, or "
                "scheduler=constant."
            )
    elif options["max_epochs"] in (None, -1) and options["max_steps"] == -1:
        raise UserError(
            "scheduler: the learning rate changes over the whole run, and nothing says when it "
            "ends. Set trainer.max_epochs, max_steps or max_time."
        )
    return make
