"""The run's outcome: ``results.json`` for programs, a table for people, hparams for TensorBoard."""

import json
import math
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table

from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.callbacks.throughput import Throughput, peak_memory_bytes
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.files import replace_text
from lmbench.module import LanguageModelModule
from lmbench.score import Score
from lmbench.stdout import printing


class Results(L.Callback):
    """Keeps the best validation while training, and reports when the test has run.

    Args:
        run_dir: Folder in which ``results.json`` is written.
        model_name: Name in the model's config.
        seed: The run's seed.
        hyperparameters: Flat, for TensorBoard's hparams table.
        init_from: The run whose weights training started from, if it did.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        model_name: str,
        seed: int,
        hyperparameters: Mapping[str, Any],
        init_from: str | None = None,
    ) -> None:
        self._path = Path(run_dir, "results.json")
        self._model_name = model_name
        self._seed = seed
        self._hyperparameters = dict(hyperparameters)
        self._init_from = init_from
        self._best_epoch: int | None = None
        self._best: Score | None = None
        self._num_epochs: float = 0
        self._num_steps = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remembers the best validation, by nats per token."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        assert isinstance(pl_module, LanguageModelModule)
        score = pl_module.scores["val"]
        if score.nll < (self._best.nll if self._best else math.inf):
            self._best, self._best_epoch = score, trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes how far training went; the test resets the trainer's own counters."""
        self._num_steps = trainer.global_step
        num_windows = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        self._num_epochs = trainer.current_epoch + 1
        if num_windows < trainer.num_training_batches:  # time or steps were over
            self._num_epochs = trainer.current_epoch + num_windows / trainer.num_training_batches

    def state_dict(self) -> dict[str, Any]:
        """The best validation, and how far training went."""
        return {
            "best": None if self._best is None else tuple(self._best),
            "best_epoch": self._best_epoch,
            "num_epochs": self._num_epochs,
            "num_steps": self._num_steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        best = state_dict["best"]
        self._best = None if best is None else Score(*best)
        self._best_epoch = state_dict["best_epoch"]
        self._num_epochs = state_dict["num_epochs"]
        self._num_steps = state_dict["num_steps"]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Writes and shows the results after the test, even if it had no batches.

        Raises:
            UserError: Stdout cannot be written; the file is there.
        """
        if stage != "test" or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, LanguageModelModule)
        results = self._collect(trainer, pl_module)
        replace_text(self._path, json.dumps(results, indent=2, allow_nan=False) + "\n")
        self._log_hyperparameters(trainer, results)
        with printing(f" The run has finished: its results are in {self._path}."):
            Console().print(_table(results))

    # Any: Lightning's connectors give a trainer attributes that its class does not declare.
    def _collect(self, trainer: Any, module: LanguageModelModule) -> dict[str, Any]:
        datamodule: LanguageModelDataModule = trainer.datamodule
        corpus = datamodule.corpus
        device = trainer.strategy.root_device  # the module has left it by now
        throughput = _callback(trainer, Throughput)
        nt_asgd = _callback(trainer, NTASGD)
        data: dict[str, Any] = {
            "name": corpus.name,
            "vocabulary_size": len(corpus.vocabulary),
            "num_tokens": dict(corpus.num_tokens),
            "sha256": corpus.sha256,
        }
        if corpus.perplexity_floor is not None:
            data["perplexity_floor"] = dict(corpus.perplexity_floor)
        return {
            "lmbench_version": version("lmbench"),
            "model": self._model_name,
            "num_parameters": module.model.num_parameters,
            "seed": self._seed,
            **({"init_from": self._init_from} if self._init_from else {}),
            "precision": trainer.precision,
            "data": data,
            "best_epoch": self._best_epoch,
            "weights_sha256": module.model.weights_sha256(),
            "evaluation": dict(datamodule.evaluation),
            "val": _score(self._best) if self._best else None,
            "test": _score(module.scores["test"]) if "test" in module.scores else None,
            "nt_asgd": {"triggered_epoch": nt_asgd.triggered_epoch if nt_asgd else None},
            "train": {
                "epochs": self._num_epochs,
                "steps": self._num_steps,
                "tokens": throughput.num_tokens if throughput else None,
                "seconds": throughput.seconds if throughput else None,
                "tokens_per_second": throughput.tokens_per_second if throughput else None,
                "peak_memory_bytes": peak_memory_bytes(device),
            },
            "environment": {
                "torch": torch.__version__,
                "lightning": L.__version__,
                "device": _device_name(device),
                "num_threads": torch.get_num_threads(),
                "float32_matmul_precision": torch.get_float32_matmul_precision(),
            },
        }

    def _log_hyperparameters(self, trainer: L.Trainer, results: Mapping[str, Any]) -> None:
        metrics = {
            f"best/{split}_ppl": results[split]["ppl"]
            for split in ("val", "test")
            if results[split]
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self._hyperparameters, metrics, step=self._num_steps)


def _callback(trainer: Any, kind: type) -> Any:
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def _score(score: Score) -> dict[str, float | int]:
    return {"nll": score.nll, "ppl": math.exp(score.nll), "num_tokens": score.num_tokens}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({os.cpu_count()} cores)"


def _table(results: Mapping[str, Any]) -> Table:
    train, floor = results["train"], results["data"].get("perplexity_floor")
    table = Table(title=f"{results['model']} on {results['data']['name']}", title_justify="left")
    for column in ("split", "perplexity", "nats/token", "tokens", *(["floor"] if floor else [])):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, name in (("val", "valid"), ("test", "test")):
        score = results[split]
        if score is None:
            continue
        cells = [name, f"{score['ppl']:.2f}", f"{score['nll']:.4f}", f"{score['num_tokens']:,}"]
        table.add_row(*cells, *([f"{floor[name]:.2f}"] if floor else []))
    caption = [
        f"{results['num_parameters']:,} parameters",
        f"{train['steps']:,} steps",
    ]
    if results["best_epoch"] is not None:
        caption.insert(1, f"best epoch {results['best_epoch']}")
    if train["tokens_per_second"]:
        caption.append(f"{train['tokens_per_second']:,.0f} tokens/s")
    if train["seconds"]:
        caption.append(f"{train['seconds'] / 60:.1f} min")
    caption.append(f"peak memory {train['peak_memory_bytes'] / 2**30:.2f} GiB")
    if results["nt_asgd"]["triggered_epoch"] is not None:
        caption.append(f"averaged SGD after epoch {results['nt_asgd']['triggered_epoch']}")
    table.caption = ", ".join(caption)
    return table
