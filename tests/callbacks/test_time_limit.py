"""Time limits by a clock that moves only when the test says so."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import timer
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader
from trainings import Clock, quiet_trainer

from lmbench.callbacks.time_limit import TimeLimit
from lmbench.optim import PhasedLR

SECONDS_PER_STEP, SECONDS_PER_VALIDATION, STEPS_PER_EPOCH = 2.0, 10.0, 5
PHASES = [{"share": 1, "lr_factor": [0.0, 1.0]}, {"share": 3, "lr_factor": [1.0, 0.0]}]


class TimedModule(L.LightningModule):
    """Training and validation that take time; notes the learning rate of each step."""

    def __init__(self, clock: Clock, total_steps: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.clock = clock
        self.total_steps = total_steps
        self.lrs: list[float] = []
        self.validated_at: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.lrs.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.clock.now += SECONDS_PER_STEP
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.clock.now += SECONDS_PER_VALIDATION
        self.validated_at.append(self.global_step)

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=1.0)
        scheduler = PhasedLR(optimizer, self.total_steps, PHASES)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def test_the_first_process_says_how_much_time_has_passed(clock: Clock):
    """Their clocks differ, and with them their learning rates would."""
    limit, scheduler = (
        TimeLimit("00:00:01:00"),
        PhasedLR(SGD([torch.zeros(1)], lr=1.0), None, PHASES),
    )
    asked = []
    strategy = SimpleNamespace(broadcast=lambda share: asked.append(share) or 0.25)
    limit.on_train_batch_start(
        SimpleNamespace(strategy=strategy),
        SimpleNamespace(lr_schedulers=lambda: scheduler),
        None,
        0,
    )
    assert asked == [limit.share]
    assert scheduler.progress == 0.25


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timer, "time", clock)
    return clock


def fit(module: TimedModule, limit: L.Callback, **options: Any) -> L.Trainer:
    resumed, more = options.pop("ckpt_path", None), options.pop("more", [])
    trainer = quiet_trainer(
        limit,
        *more,
        reload_dataloaders_every_n_epochs=0,
        **({"max_epochs": -1} | options),
    )
    windows = DataLoader(torch.zeros(STEPS_PER_EPOCH), batch_size=1)
    trainer.fit(module, windows, DataLoader(torch.zeros(1)), ckpt_path=resumed)
    return trainer


def expected_lr(step: int, limit: float) -> float:
    """The lr for the time at which the step before began, as the schedule was told then."""
    if step == 0:
        return 0.0
    before = step - 1
    validations = before // STEPS_PER_EPOCH
    share = (before * SECONDS_PER_STEP + validations * SECONDS_PER_VALIDATION) / limit
    return 4 * share if share <= 0.25 else (1 - share) * 4 / 3


def test_the_schedule_follows_the_time_and_the_run_ends_with_it(clock: Clock):
    module = TimedModule(clock)
    fit(module, TimeLimit("00:00:01:10"))
    # 70 s: three epochs of 5 · 2 s and a validation of 10 s, then ten seconds are left.
    assert len(module.lrs) == 20
    assert module.lrs == pytest.approx([expected_lr(step, 70) for step in range(20)])
    assert min(module.lrs[1:]) >= 0
    assert module.validated_at == [5, 10, 15, 20]


def test_it_ends_within_an_epoch_and_validates_there_once(clock: Clock):
    module = TimedModule(clock)
    fit(module, TimeLimit({"seconds": 25}))
    assert module.validated_at == [5, 8]


def test_a_validation_may_use_up_the_time(clock: Clock):
    module = TimedModule(clock)
    fit(module, TimeLimit({"seconds": 15}))
    assert (len(module.lrs), module.validated_at) == (5, [5])


def test_a_limit_of_steps_may_come_first(clock: Clock):
    module = TimedModule(clock, total_steps=8)
    fit(module, TimeLimit({"hours": 1}), max_steps=8)
    shares = [step / 8 for step in range(8)]
    lrs = [4 * share if share <= 0.25 else (1 - share) * 4 / 3 for share in shares]
    assert module.lrs == pytest.approx(lrs)


def test_a_resumed_run_has_the_time_that_was_left(clock: Clock, tmp_path: Path):
    limit, path = "00:00:01:20", tmp_path / "step_7.ckpt"
    whole, first, second = (TimedModule(clock) for _ in range(3))
    fit(whole, TimeLimit(limit), limit_val_batches=0)
    fit(first, TimeLimit(limit), limit_val_batches=0, max_steps=7).save_checkpoint(path)
    clock.now += 1e6  # in between
    fit(second, TimeLimit(limit), limit_val_batches=0, ckpt_path=path)
    assert len(whole.lrs) == 40
    assert [*first.lrs, *second.lrs] == pytest.approx(whole.lrs)


def test_a_run_whose_time_is_over_counts_its_last_epoch(clock: Clock, tmp_path: Path):
    class SavesAtEnds(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    limit = {"seconds": 25}  # eight steps
    whole = fit(TimedModule(clock), TimeLimit(limit), more=[SavesAtEnds()])
    module = TimedModule(clock)
    resumed = fit(module, TimeLimit(limit), ckpt_path=tmp_path / "last.ckpt")
    assert module.lrs == []
    assert module.validated_at == []
    assert (resumed.current_epoch, resumed.global_step) == (whole.current_epoch, 8)


@pytest.mark.parametrize("wrong", ["60", "1:00", "an hour", {"years": 1}, "00:00:00:00", {}])
def test_what_is_not_a_time_above_zero_is_refused(wrong: Any):
    with pytest.raises(ValueError, match="max_time must"):
        TimeLimit(wrong)


@pytest.mark.parametrize(
    ("written", "seconds"), [("02:03:04:05", 183_845), ({"hours": 2, "minutes": 1}, 7260)]
)
def test_a_time_can_be_written_in_two_ways(clock: Clock, written: Any, seconds: int):
    """The run ends with the step that reaches the limit, and no sooner."""
    for passed, num_steps in ((seconds - 1, 2), (seconds, 1)):
        module = TimedModule(clock)
        limit = TimeLimit(written)
        limit.load_state_dict({"time_elapsed": {"train": float(passed) - SECONDS_PER_STEP}})
        fit(module, limit, limit_val_batches=0)
        assert len(module.lrs) == num_steps
