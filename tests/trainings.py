"""Corpora, models and trainers for a few training steps on the CPU; helpers to run commands."""

import os
import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from lmbench.data.columns import EvaluationSettings
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.data.vocabulary import Vocabulary
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax
from lmbench.perplexity import Score
from lmbench.training.module import TRAINER_OPTIONS, LanguageModelModule


class Clock:
    """Replaces the module ``time``: moves only when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


class Scripted(LanguageModelModule):
    """Validates and logs as usual; if there is a script, its scores decide instead."""

    script: Sequence[float] = ()

    def _log_scores(self, stage: str) -> None:
        super()._log_scores(stage)
        if stage == "val" and self.script and self.trainer.state.fn == TrainerFn.FITTING:
            index = min(self.current_epoch, len(self.script) - 1)
            self.scores["val"] = Score(self.script[index], 1)


def random_corpus(words: int, train: int, valid: int = 40, test: int = 40) -> Corpus:
    """Tokens drawn at random from ``words`` words; the splits' lengths are in tokens."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, words, length, dtype=np.int32) for length in (train, valid, test)]
    return Corpus("text", Vocabulary(tuple(f"w{index}" for index in range(words))), *ids)


def windows_of(corpus: Corpus, **options: Any) -> LanguageModelDataModule:
    """Windows of a corpus; the options may also be those of EvaluationSettings."""
    names = [field.name for field in fields(EvaluationSettings) if field.name in options]
    evaluation = EvaluationSettings(**{name: options.pop(name) for name in names})
    return LanguageModelDataModule(corpus, **options, evaluation=evaluation)


def random_windows(words: int, *lengths: int, **options: Any) -> LanguageModelDataModule:
    """Windows over a :func:`random_corpus`, of two columns unless told otherwise."""
    defaults = {"batch_size": 2, "bptt": 10, "columns": 1}
    return windows_of(random_corpus(words, *lengths), **(defaults | options))


def small_module(
    words: int,
    optimizer: Callable[[Iterable[Tensor]], Optimizer] | None = None,
    kind: type[LanguageModelModule] = LanguageModelModule,
) -> LanguageModelModule:
    """An LSTM to train, always with the same weights; by plain SGD unless told otherwise."""
    torch.manual_seed(0)
    model = LanguageModel(Embedding(words, 4), LSTM(4, 4, num_layers=1), Softmax(4, words))
    return kind(model, optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.125)))


def quiet_trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    """A trainer like lmbench's, but without loggers and checkpoints unless told otherwise."""
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    return L.Trainer(
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **(defaults | TRAINER_OPTIONS | options),
    )


def weights_of(module: L.LightningModule) -> dict[str, Tensor]:
    """Copies of the model's weights, by their names."""
    return {name: value.detach().clone() for name, value in module.model.named_parameters()}


def start(
    folder: Path, *arguments: str, command: str = "lmbench-train", **options: Any
) -> "subprocess.Popen[str]":
    """Starts a command in a folder, without the user's own settings for Hydra, if any."""
    folder.mkdir(parents=True, exist_ok=True)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HYDRA_")}
    pipe = subprocess.PIPE
    defaults = {"env": inherited | {"OMP_NUM_THREADS": "1"}, "stdout": pipe, "stderr": pipe}
    path = Path(sysconfig.get_path("scripts"), command)
    return subprocess.Popen([path, *arguments], cwd=folder, text=True, **(defaults | options))


def command(folder: Path, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Runs a command in a folder until it ends, which must be without a traceback."""
    with start(folder, *arguments, **options) as process:
        stdout, stderr = process.communicate(timeout=300)
    assert "Traceback" not in stderr
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


def refusal(folder: Path, *arguments: str, **options: Any) -> str:
    """The one paragraph of a failing command, without a sweep's numbering and Hydra's own line."""
    result = command(folder, *arguments, **options)
    assert result.returncode == 1, result.stderr
    lines = result.stderr.strip().splitlines()
    lines = [line for line in lines if not line.startswith("Error executing job with overrides: ")]
    lines = [re.sub(r"^#\d+ ", "", line) for line in lines]
    assert len(set(lines)) == 1, result.stderr
    return lines[0]
