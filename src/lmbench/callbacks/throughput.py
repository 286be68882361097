"""Training speed, measured on the training steps alone; peak memory; wall-clock time."""

import ctypes
import resource
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lmbench.training.module import logs_at

_STEPS_OF_WARM_UP = 2


class Throughput(L.Callback):
    """Logs ``train/tokens_per_second``, ``train/peak_memory_bytes`` and ``train/seconds``.

    A step's time runs from the end of the step before, so that fetching the window counts;
    validation and saving do not, nor do the first two steps. What is logged is the median over the
    steps since the last log. ``train/seconds`` is logged with each validation: the wall-clock time
    of the fit up to its end.

    Attributes:
        num_tokens: Tokens trained on, over all devices.
        seconds: Wall-clock time of the fit, validation and saving included.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self.seconds = 0.0
        self._rates: list[float] = []
        self._earlier: float | None = None
        self._num_logged = _STEPS_OF_WARM_UP
        self._peak_memory_bytes = 0
        self._device: torch.device | None = None
        self._fit_start = 0.0
        self._step_start: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Tokens, seconds and peak of memory so far, and the speed."""
        return {
            "num_tokens": self.num_tokens,
            "seconds": self._seconds_so_far(),
            "tokens_per_second": self.tokens_per_second,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the counts; the speed is that of this process's steps, if it takes any."""
        self.num_tokens = state_dict["num_tokens"]
        self.seconds = state_dict["seconds"]
        self._earlier = state_dict.get("tokens_per_second")
        self._peak_memory_bytes = state_dict.get("peak_memory_bytes", 0)

    @property
    def tokens_per_second(self) -> float | None:
        """Median over this process's steps but the first two; until then, an earlier one's."""
        rates = self._rates[_STEPS_OF_WARM_UP:]
        return statistics.median(rates) if rates else self._earlier

    @property
    def peak_memory_bytes(self) -> int:
        """Of this process, if it trains, and of those before a resume."""
        now = 0 if self._device is None else peak_memory_bytes(self._device)
        return max(self._peak_memory_bytes, now)

    def on_train_start(self, trainer, pl_module) -> None:
        """Starts the clock, and resets the peak of memory: a sweep's jobs may share a process."""
        self._device = pl_module.device
        reset_peak_memory(self._device)
        self._fit_start = time.perf_counter() - self.seconds

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """A step after an interruption starts here."""
        if self._step_start is None:
            self._step_start = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Times the step, and logs where the trainer logs."""
        now = time.perf_counter()
        num_tokens = batch.num_scored * trainer.world_size
        self.num_tokens += num_tokens
        if self._step_start is not None:
            self._rates.append(num_tokens / (now - self._step_start))
        self._step_start = now
        since_last_log = self._rates[self._num_logged :]
        if since_last_log and logs_at(trainer, trainer.global_step):
            self._num_logged = len(self._rates)
            # A float would go to the GPU, and Lightning would wait for it after every step.
            rate = torch.tensor(statistics.median(since_last_log))
            pl_module.log("train/tokens_per_second", rate, prog_bar=True)
            pl_module.log("train/peak_memory_bytes", float(peak_memory_bytes(pl_module.device)))

    def on_validation_start(self, trainer, pl_module) -> None:
        """Validation is not part of a training step."""
        self._step_start = None

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        """Logs when the validation was done, in wall-clock time."""
        if trainer.state.fn == TrainerFn.FITTING:
            pl_module.log("train/seconds", self._seconds_so_far(), sync_dist=True)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        """Saving is not part of a training step."""
        self._step_start = None

    def on_train_end(self, trainer, pl_module) -> None:
        """Stops the clock."""
        self.seconds = self._seconds_so_far()

    def _seconds_so_far(self) -> float:
        return time.perf_counter() - self._fit_start


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory since the last reset: of the CUDA allocator on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # where ru_maxrss also counts the process before its exec
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):  # not so in every sandbox
                return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def reset_peak_memory(device: torch.device) -> None:
    """Makes the peak count from now on. Not on macOS, where a process cannot reset it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)  # what an earlier job has freed and the allocator has kept
        with suppress(OSError):  # a container may forbid it
            Path("/proc/self/clear_refs").write_text("5", "ascii")
