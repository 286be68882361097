import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from trainings import Scripted, quiet_trainer, random_windows, small_module

from lmbench.callbacks import progress
from lmbench.callbacks.progress import Progress
from lmbench.module import Best
from lmbench.score import Score


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the callback has logged so far."""
    messages: list[str] = []
    monkeypatch.setattr(progress, "log", SimpleNamespace(info=messages.append))
    return messages


def after_validation(*, is_global_zero: bool = True) -> Any:
    figures = {"train/ppl": 101.26, "train/tokens_per_second": 45_678.9, "train/seconds": 90.0}
    metrics = figures | {"val/nll": math.log(98.7654), "val/ppl": 98.7654}
    return SimpleNamespace(
        is_global_zero=is_global_zero,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        current_epoch=3,
        global_step=12_345,
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
    )


@pytest.mark.parametrize(
    ("best_epoch", "mark"), [(3, " (best)"), (2, ""), (None, "")], ids=["this", "another", "none"]
)
def test_a_line_names_what_matters(lines: list[str], best_epoch: int | None, mark: str):
    module = small_module(9)
    module.best = None if best_epoch is None else Best(best_epoch, Score(4.0, 1))
    Progress().on_validation_end(after_validation(), module)
    assert lines == [
        f"epoch 3 | step 12,345 | train ppl 101.3 | valid ppl 98.77{mark} | 45,679 tokens/s"
        " | 1.5 min"
    ]


def test_only_the_first_of_several_processes_says_it(lines: list[str]):
    Progress().on_validation_end(after_validation(is_global_zero=False), small_module(9))
    assert lines == []


def test_a_training_has_a_line_per_validation_and_a_test_none(lines: list[str]):
    module, datamodule = small_module(9, kind=Scripted), random_windows(9, 80)
    module.script = [3.0, 3.0, 2.0]
    trainer = quiet_trainer(Progress(), max_epochs=3, log_every_n_steps=2)
    trainer.fit(module, datamodule=datamodule)
    ppl = float(trainer.callback_metrics["val/ppl"])
    trainer.validate(module, datamodule=datamodule, verbose=False)
    trainer.test(module, datamodule=datamodule, verbose=False)
    assert [line.partition(" | train ppl ")[0] for line in lines] == [
        f"epoch {epoch} | step {4 * epoch + 4}" for epoch in range(3)
    ]
    assert ["(best)" in line for line in lines] == [True, False, True]
    assert f"valid ppl {ppl:.2f} (best)" in lines[2]
