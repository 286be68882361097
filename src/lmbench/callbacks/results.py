"""The run's outcome: ``results.json`` for programs, a table for people, hparams for TensorBoard."""

import json
import logging
import os
from collections.abc import Mapping
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmbench.callbacks.metrics_csv import MetricsCSV
from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.callbacks.throughput import Throughput, peak_memory_bytes
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.files import replace_text
from lmbench.machine import processor
from lmbench.run.config import model_name
from lmbench.run.directory import key_of, noted_overrides
from lmbench.run.provenance import provenance
from lmbench.run.targets import flatten
from lmbench.terminal.printing import printable
from lmbench.training.lightning_internals import num_windows_done
from lmbench.training.module import LanguageModelModule

log = logging.getLogger(__name__)


class Results(L.Callback):
    """Notes how far the training went, and reports when the test has run.

    Args:
        run_dir: Folder in which ``results.json`` is written.
        config: The run's config; the values that affect its numbers go into TensorBoard's hparams
            table.
    """

    def __init__(self, run_dir: str | Path, config: Mapping[str, Any]) -> None:
        self._path = Path(run_dir, "results.json")
        self._config = config
        self._num_epochs: float = 0
        self._num_steps = 0
        self._provenance: dict[str, Any] | None = None

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Notes how far training went; the test resets the trainer's own counters."""
        self._num_steps = trainer.global_step
        self._num_epochs += num_windows_done(trainer) / trainer.num_training_batches
        self._provenance = provenance()

    def on_train_end(self, trainer: Any, pl_module) -> None:
        """Says why early stopping ended the run, if the callback does not."""
        for callback in trainer.early_stopping_callbacks:
            is_silent = trainer.is_global_zero and not callback.verbose
            if is_silent and callback.stopping_reason_message:
                log.info("%s", callback.stopping_reason_message)

    def state_dict(self) -> dict[str, Any]:
        """How far the training went."""
        progress = {"num_epochs": self._num_epochs, "num_steps": self._num_steps}
        return progress | {"provenance": self._provenance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores how far an earlier part of the run went."""
        self._num_epochs, self._num_steps = state_dict["num_epochs"], state_dict["num_steps"]
        self._provenance = state_dict.get("provenance")  # earlier versions had none

    def teardown(self, trainer, pl_module: Any, stage) -> None:
        """Writes and shows the results after the test, even if it had no batches."""
        if stage != "test" or not trainer.is_global_zero:
            return
        results = self._collect(trainer, pl_module)
        replace_text(self._path, json.dumps(results, indent=2, allow_nan=False) + "\n")
        self._log_hyperparameters(trainer, results)
        text = StringIO()  # for train.log too, so without colors
        console = Console(file=text, width=Console().width)
        console.print(_table(results))
        console.print(_summary(results))
        if any(map(_is_part, (trainer.limit_val_batches, trainer.limit_test_batches))):
            console.print("A test of the set-up: valid and test were read in part. Not a result.")
        lines = (line.rstrip() for line in text.getvalue().splitlines())
        log.info("results.json has been written.\n%s", "\n".join(lines))

    # Any: Lightning's connectors give a trainer attributes that its class does not declare.
    def _collect(self, trainer: Any, module: LanguageModelModule) -> dict[str, Any]:
        datamodule: LanguageModelDataModule = trainer.datamodule
        corpus, best = datamodule.corpus, module.best
        assert best is not None  # no run is tested without a validation
        device = trainer.strategy.root_device  # the module has left it by now
        is_gpu, cpu = device.type == "cuda", f"{device.type} ({os.cpu_count()} cores)"
        throughput = _callback(trainer, Throughput)
        nt_asgd = _callback(trainer, NTASGD)
        init_from = self._config["init_from"]
        evaluation = datamodule.plain_evaluation
        # Other protocols divide by something other than the number of targets.
        floor = corpus.perplexity_floor if evaluation["protocol"] == "standard" else None
        return {
            "lmbench_version": version("lmbench"),
            **(self._provenance or provenance()),
            "name": self._config.get("name"),
            "model": model_name(self._config["model"]),
            "num_parameters": module.model.num_parameters,
            "seed": self._config["seed"],
            **({"init_from": init_from} if init_from else {}),
            "precision": trainer.precision,
            "data": {
                "name": corpus.name,
                "vocabulary_size": len(corpus.vocabulary),
                "num_tokens": dict(corpus.num_tokens),
                "sha256": corpus.sha256,
                **({"perplexity_floor": dict(floor)} if floor else {}),
            },
            "best_epoch": best.epoch,
            "weights_sha256": module.model.weights_sha256(),
            "evaluation": evaluation,
            "val": best.score.plain(),
            "test": module.scores["test"].plain() if "test" in module.scores else None,
            "nt_asgd": {"triggered_epoch": nt_asgd.triggered_epoch if nt_asgd else None},
            "train": {
                "epochs": self._num_epochs,
                "steps": self._num_steps,
                "tokens": throughput.num_tokens if throughput else None,
                "seconds": throughput.seconds if throughput else None,
                "tokens_per_second": throughput.tokens_per_second if throughput else None,
                "peak_memory_bytes": (throughput and throughput.peak_memory_bytes)
                or peak_memory_bytes(device),
            },
            "environment": {
                "torch": torch.__version__,
                "lightning": L.__version__,
                "device": torch.cuda.get_device_name(device) if is_gpu else cpu,
                "processor": processor(),
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
        moving = {node: values for node, values in self._config.items() if node != "logger"}
        averaging = ("nt_asgd", "weight_average")
        moving["callbacks"] = {k: v for k, v in moving["callbacks"].items() if k in averaging}
        values = flatten(moving)
        # What a reader of many runs looks for comes first, including what the command line has set.
        noted = noted_overrides(self._path.parent) or []
        first = ("model.name", "name", "seed", *map(key_of, noted))
        ordered = {key: values[key] for key in (*first, *values) if key in values}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(ordered, metrics, step=self._num_steps)
            elif not isinstance(logger, MetricsCSV):  # others got the config at the start
                logger.log_metrics(metrics, step=self._num_steps)


def _callback(trainer: Any, kind: type) -> Any:
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def _table(results: Mapping[str, Any]) -> Table:
    floor = results["data"].get("perplexity_floor")
    title = Text(printable(f"{results['model']} on {results['data']['name']}"))
    table = Table(title=title, title_justify="left")
    for column in ("split", "perplexity", "nats/token", "tokens", *(["floor"] if floor else [])):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split, name in (("val", "valid"), ("test", "test")):
        score = results[split]
        if score is None:
            continue
        cells = [name, f"{score['ppl']:.2f}", f"{score['nll']:.4f}", f"{score['num_tokens']:,}"]
        table.add_row(*cells, *([f"{floor[name]:.2f}"] if floor else []))
    return table


def _summary(results: Mapping[str, Any]) -> str:
    train, words = results["train"], [f"{results['num_parameters']:,} parameters"]
    words.append(f"best after epoch {results['best_epoch'] + 1}")
    words.append(f"{train['steps']:,} steps")
    if train["tokens_per_second"]:
        words.append(f"{train['tokens_per_second']:,.0f} tokens/s")
    if train["seconds"]:
        words.append(f"{train['seconds'] / 60:.1f} min")
    words.append(f"peak memory {train['peak_memory_bytes'] / 2**30:.2f} GiB")
    if results["nt_asgd"]["triggered_epoch"] is not None:
        words.append(f"averaged SGD after epoch {results['nt_asgd']['triggered_epoch'] + 1}")
    return ", ".join(words)


def _is_part(limit: int | float) -> bool:
    """Whether Lightning's limit leaves out batches of a split: 1 is one of them, 1.0 is all."""
    return limit != 0 and not (isinstance(limit, float) and limit == 1.0)
