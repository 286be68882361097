import logging
import math
import re

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lmbench.callbacks import progress
from lmbench.callbacks.progress import Progress
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.data.vocabulary import Vocabulary
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax
from lmbench.module import LanguageModelModule


class FakeTrainer:
    """As it stands after a validation within a training."""

    def __init__(
        self, epoch: int, step: int, *, best: float | None = None, **metrics: float
    ) -> None:
        self.is_global_zero = True
        self.state = type("State", (), {"fn": TrainerFn.FITTING})
        self.checkpoint_callback = type("Checkpoints", (), {"best_score": best})
        self.current_epoch, self.global_step = epoch, step
        metrics["val_ppl"] = math.exp(metrics["val_nll"])
        self.callback_metrics = {
            name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()
        }


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the callback has logged so far."""
    caplog.set_level(logging.INFO, logger=progress.__name__)
    messages: list[str] = []
    monkeypatch.setattr(progress.log, "info", messages.append)
    return messages


def test_a_line_names_what_matters(lines: list[str]):
    figures = {"train_ppl": 101.26, "train_tokens_per_second": 45_678.9, "train_seconds": 90.0}
    trainer = FakeTrainer(3, 12_345, val_nll=math.log(98.7654), **figures)
    Progress().on_validation_end(trainer, None)
    assert lines == [
        "epoch 3 | step 12,345 | train ppl 101.3 | valid ppl 98.77 (best) | 45,679 tokens/s"
        " | 1.5 min"
    ]


def test_only_the_first_of_several_processes_says_it(lines: list[str]):
    trainer = FakeTrainer(0, 0, val_nll=4.0)
    trainer.is_global_zero = False
    Progress().on_validation_end(trainer, None)
    assert lines == []


@pytest.mark.parametrize(
    ("nll", "best", "is_best"),
    [
        (4.0, None, True),
        (3.9, 4.0, True),
        (4.0, 4.0, False),
        (4.1, 4.0, False),
        (math.nan, 4.0, False),
        (math.nan, None, False),
    ],
)
def test_a_validation_is_the_best_if_it_is_better_than_those_before(
    lines: list[str], nll: float, best: float | None, is_best: bool
):
    Progress().on_validation_end(FakeTrainer(1, 1, val_nll=nll, best=best), None)
    (line,) = lines
    assert ("(best)" in line) == is_best


def test_without_checkpoints_none_is_said_to_be_the_best(lines: list[str]):
    trainer = FakeTrainer(1, 1, val_nll=4.0)
    trainer.checkpoint_callback = None
    Progress().on_validation_end(trainer, None)
    assert "(best)" not in lines[0]


def test_a_training_has_a_line_per_validation_and_a_test_none(lines: list[str]):
    ids = np.random.default_rng(0).integers(0, 9, 80, dtype=np.int32)
    corpus = Corpus("text", Vocabulary(tuple("abcdefghi")), ids, ids[:40], ids[40:])
    datamodule = LanguageModelDataModule(corpus, batch_size=2, bptt=10, evaluation_columns=1)
    model = LanguageModel(Embedding(9, 4), LSTM(4, 4), Softmax(4, 9))
    module = LanguageModelModule(model, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    perplexities = []

    class Recorder(L.Callback):
        def on_validation_end(self, trainer, pl_module) -> None:
            nats, num_tokens, _ = pl_module.scores["val"]
            perplexities.append(math.exp(nats / num_tokens))

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[Progress(), Recorder()],
        logger=False,
        log_every_n_steps=2,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(module, datamodule=datamodule)
    trainer.validate(module, datamodule=datamodule, verbose=False)
    trainer.test(module, datamodule=datamodule, verbose=False)
    assert len(lines) == 3
    for epoch, line in enumerate(lines):
        assert line.startswith(f"epoch {epoch} | step {4 * epoch + 4} | train ppl ")
        assert re.search(rf"valid ppl {perplexities[epoch]:.2f}\b", line)
