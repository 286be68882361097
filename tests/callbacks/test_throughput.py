"""Throughput by a clock that moves only when the test says so."""

import resource
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from trainings import Clock, quiet_trainer

from lmbench.callbacks import throughput
from lmbench.callbacks.throughput import Throughput, peak_memory_bytes, reset_peak_memory
from lmbench.data.batching import Batch

FETCH, VALIDATION, SAVING = 0.25, 1000.0, 500.0
LOGGED = (2, 3), (4, 7)  # first and last step that one log covers
# A window's number of tokens, and the seconds of a step on it.
STEPS = [(10, 50.0), (20, 70.0), (30, 1.5), (40, 2.0), (10, 4.0), (30, 1.0), (20, 3.0), (50, 0.5)]


class Windows:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __len__(self) -> int:
        return len(STEPS)

    def __iter__(self):
        for num_tokens, _ in STEPS:
            self._clock.now += FETCH
            tokens = torch.zeros(num_tokens, 1, dtype=torch.int64)
            yield Batch(tokens, tokens, 1.0, num_tokens)


class TimedModule(L.LightningModule):
    """Training and validation that take time, and do nothing else."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.clock = clock
        self.rates: dict[int, float] = {}
        self.seconds: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.clock.now += STEPS[batch_idx][1]
        return self.weight**2

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        logged = self.trainer.callback_metrics
        if "train/tokens_per_second" in logged:
            self.rates[batch_idx] = float(logged["train/tokens_per_second"])
            assert float(logged["train/peak_memory_bytes"]) > 2**20

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.clock.now += VALIDATION

    def on_validation_end(self) -> None:
        self.seconds.append(float(self.trainer.callback_metrics["train/seconds"]))

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        self.clock.now += SAVING

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    monkeypatch: pytest.MonkeyPatch, *callbacks: L.Callback, **options
) -> tuple[Throughput, TimedModule, Clock]:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    callback, module = Throughput(), TimedModule(clock)
    defaults = {"log_every_n_steps": 1, "limit_val_batches": 0}
    quiet_trainer(
        callback,
        *callbacks,
        max_epochs=1,
        reload_dataloaders_every_n_epochs=0,
        enable_checkpointing=bool(callbacks),
        **(defaults | options),
    ).fit(module, Windows(clock), Windows(clock))
    return callback, module, clock


def rates(steps: slice, without_fetching: tuple[int, ...] = ()) -> list[float]:
    """Tokens per second of single steps; a step after an interruption starts without fetching."""
    return [
        num_tokens / (seconds + (0 if index in without_fetching else FETCH))
        for index, (num_tokens, seconds) in list(enumerate(STEPS))[steps]
    ]


def test_the_median_leaves_out_the_first_two_steps(monkeypatch: pytest.MonkeyPatch):
    callback, module, _ = fit(monkeypatch)
    expected = rates(slice(2, None))
    assert callback.tokens_per_second == pytest.approx(statistics.median(expected))
    assert callback.tokens_per_second != pytest.approx(statistics.median(rates(slice(None))))
    assert callback.num_tokens == sum(num_tokens for num_tokens, _ in STEPS)
    assert callback.seconds == sum(FETCH + seconds for _, seconds in STEPS)
    # With a log at every step, each is that step's own rate.
    assert module.rates == pytest.approx(dict(enumerate(expected, start=2)))


def test_a_log_is_the_median_since_the_last_one(monkeypatch: pytest.MonkeyPatch):
    _, module, _ = fit(monkeypatch, log_every_n_steps=4)
    medians = {end: statistics.median(rates(slice(start, end + 1))) for start, end in LOGGED}
    assert {end: module.rates[end] for _, end in LOGGED} == pytest.approx(medians)
    callback, module, _ = fit(monkeypatch, log_every_n_steps=0)
    assert not module.rates
    assert callback.tokens_per_second == pytest.approx(statistics.median(rates(slice(2, None))))


@pytest.mark.parametrize("what", ["validation", "saving"])
def test_what_is_not_training_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
):
    """It comes after the third and the sixth step; the next one starts once its window is there."""
    validating = {"limit_val_batches": 2, "val_check_interval": 3}
    saving = ModelCheckpoint(
        tmp_path, every_n_train_steps=3, save_top_k=-1, save_on_train_epoch_end=False
    )
    callbacks, options = ([], validating) if what == "validation" else ([saving], {})
    callback, _, clock = fit(monkeypatch, *callbacks, **options)
    expected = statistics.median(rates(slice(2, None), without_fetching=(3, 6)))
    assert callback.tokens_per_second == pytest.approx(expected)
    assert callback.seconds == clock.now - 1000.0
    assert callback.seconds > (4 * VALIDATION if what == "validation" else 2 * SAVING)


def test_each_validation_logs_when_it_was_done(monkeypatch: pytest.MonkeyPatch):
    _, module, _ = fit(monkeypatch, limit_val_batches=2, val_check_interval=3)
    # A validation fetches and reads two windows; training keeps fetching in the meantime.
    durations = [sum(FETCH + seconds for _, seconds in STEPS[:n]) for n in (3, 6)]
    assert len(module.seconds) == 2
    for number, (found, training) in enumerate(zip(module.seconds, durations, strict=True), 1):
        # Besides, a window may have been fetched ahead.
        rest = found - training - number * 2 * (VALIDATION + FETCH)
        assert -1e-3 <= rest <= number * 2 * FETCH


def test_tokens_and_seconds_keep_counting_after_a_resume(monkeypatch: pytest.MonkeyPatch):
    before, _, _ = fit(monkeypatch)
    state = before.state_dict()
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    callback = Throughput()
    callback.load_state_dict(state)
    assert (callback.num_tokens, callback.seconds) == (before.num_tokens, before.seconds)
    clock.now += 1e6  # the time between the two does not count
    callback.on_train_start(None, SimpleNamespace(device=torch.device("cpu")))
    clock.now += 7
    assert callback.state_dict()["seconds"] == before.seconds + 7
    logged = {}
    trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING))
    module = SimpleNamespace(log=lambda name, value, **_: logged.update({name: value}))
    callback.on_validation_epoch_end(trainer, module)
    assert logged == {"train/seconds": before.seconds + 7}
    trainer.state.fn = TrainerFn.VALIDATING  # outside of training there is no clock
    module.log = None
    callback.on_validation_epoch_end(trainer, module)
    callback.on_train_end(None, None)
    assert callback.seconds == before.seconds + 7


def test_tokens_of_all_devices_count(monkeypatch: pytest.MonkeyPatch):
    callback, clock = Throughput(), Clock()
    monkeypatch.setattr(throughput, "time", clock)
    trainer = SimpleNamespace(world_size=4, global_step=1, log_every_n_steps=50)
    callback.on_train_batch_end(trainer, None, None, Batch(None, None, 1.0, 7), 0)
    assert callback.num_tokens == 28
    for _ in range(3):
        clock.now += 2.0
        callback.on_train_batch_end(trainer, None, None, Batch(None, None, 1.0, 7), 0)
    assert callback.tokens_per_second == 14.0


def test_there_is_no_rate_before_the_third_step(monkeypatch: pytest.MonkeyPatch):
    assert Throughput().tokens_per_second is None
    callback, module, _ = fit(monkeypatch, limit_train_batches=2)
    assert callback.tokens_per_second is None
    assert module.rates == {}


def test_peak_memory_is_that_of_this_process():
    block = torch.zeros(2**23)  # 32 MiB, touched
    peak = peak_memory_bytes(torch.device("cpu"))
    assert peak > block.nbytes
    unit = 1 if sys.platform == "darwin" else 1024
    # Linux adds up the counts of all cores for only one of the two.
    assert peak <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit + 2**22
    if sys.platform == "linux":
        assert peak >= 0.9 * memory_now()


def test_the_peak_is_reset_before_the_first_step(monkeypatch: pytest.MonkeyPatch):
    devices = []
    monkeypatch.setattr(throughput, "reset_peak_memory", devices.append)
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    Throughput().on_train_start(SimpleNamespace(), module)
    assert devices == [module.device]


def test_the_peak_of_earlier_processes_counts():
    """A process that only tests does not: on a GPU, its memory is not even of the same kind."""
    first, resumed = Throughput(), Throughput()
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    first.on_train_start(SimpleNamespace(), module)
    assert first.peak_memory_bytes > 2**20
    for peak in (1000, 2**50):
        resumed.load_state_dict(first.state_dict() | {"peak_memory_bytes": peak})
        assert resumed.peak_memory_bytes == resumed.state_dict()["peak_memory_bytes"] == peak
    resumed.load_state_dict(first.state_dict() | {"peak_memory_bytes": 1000})
    resumed.on_train_start(SimpleNamespace(), module)
    assert resumed.peak_memory_bytes > 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_a_sandbox_need_not_report_the_peak(monkeypatch: pytest.MonkeyPatch):
    read = Path.read_text

    def without_peak(path: Path, *args, **kwargs) -> str:
        return read(path, *args, **kwargs).replace("VmHWM", "VmData")

    monkeypatch.setattr(Path, "read_text", without_peak)
    expected = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 0 <= peak_memory_bytes(torch.device("cpu")) - expected < 2**24


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process keeps its peak")
def test_peak_memory_leaves_out_the_job_before():
    if "VmHWM" not in Path("/proc/self/status").read_text("ascii"):
        pytest.skip("this sandbox does not tell the peak")
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        pytest.skip("this container keeps the peak")
    device = torch.device("cpu")
    large, small = 2**29, 2**27
    torch.zeros(large, dtype=torch.uint8).fill_(1)
    before = peak_memory_bytes(device)
    reset_peak_memory(device)
    start = memory_now()
    assert abs(peak_memory_bytes(device) - start) < 2**24
    torch.zeros(small, dtype=torch.uint8).fill_(1)
    peak = peak_memory_bytes(device)
    assert start + 0.9 * small < peak < start + 1.1 * small
    assert peak < before


def memory_now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
