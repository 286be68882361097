"""Checkpoints from which a run goes on exactly as if it had never stopped."""

import errno
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger

from lmbench.callbacks.metrics_csv import MetricsCSV
from lmbench.errors import UserError
from lmbench.files import flush_to_disk
from lmbench.module import LanguageModelModule

STEPS_BETWEEN_AGREEMENTS = 10
"""Steps between agreements of several processes, which make them, and a GPU, wait."""


class Checkpoints(Checkpoint):
    """Saves ``last.ckpt`` every few minutes and at each epoch's end, and ``best.ckpt``.

    ``previous.ckpt`` is the ``last.ckpt`` before. Files are replaced, never rewritten, so each of
    them is whole at any moment. Beside what Lightning saves, a checkpoint holds what each process
    needs: its random generators, its hidden state and its running sums; and how many rows the CSV
    files had.

    It saves at the start of a training step: only there, everything about the step before is done
    and logged.

    Args:
        dirpath: The folder.
        monitor: The validation metric; lower is better.
        interval_minutes: Time between two checkpoints during an epoch.

    Attributes:
        best_score: The best value of the metric so far; None before the first finite one.

    Raises:
        ValueError: ``interval_minutes`` is negative.
    """

    def __init__(
        self, dirpath: str | Path, *, monitor: str = "val/nll", interval_minutes: float = 10.0
    ) -> None:
        if not interval_minutes >= 0:
            raise ValueError(f"interval_minutes must not be negative, got {interval_minutes}")
        self.best_score: float | None = None
        self._folder = Path(dirpath)
        self._monitor = monitor
        self._interval_seconds = 60 * interval_minutes
        self._saved_at = 0.0
        self._before_a_window = False
        self._processes: list[dict[str, Any]] | None = None
        self._max_steps = -1

    @property
    def last_path(self) -> Path:
        """Path of the checkpoint to go on from."""
        return self._folder / "last.ckpt"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before a resume, hides a limit of steps from Lightning until the training starts.

        With one, it takes a checkpoint of an epoch's end for one from the middle of that epoch.

        Raises:
            UserError: Other processes have another folder. Only the first one writes, and the
                others would miss its checkpoint when all has been trained.
        """
        folders = sorted(set(_gather(str(self._folder), trainer.world_size)))
        if len(folders) > 1:
            raise UserError(
                f"The processes of this run have different folders: {', '.join(folders)}. Name one "
                "for all of them with hydra.run.dir=DIR."
            )
        if self._processes is not None:
            self._max_steps = trainer.max_steps
            trainer.fit_loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After a resume, takes up what belongs to this process.

        Raises:
            UserError: The run had another number of processes; or it has been trained for more
                steps than it now may, and since its last validation.
        """
        self._saved_at = time.monotonic()
        if self._processes is None:
            return
        trainer.fit_loop.epoch_loop.max_steps = self._max_steps
        if 0 <= self._max_steps <= trainer.global_step and trainer.fit_loop.restarted_mid_epoch:
            raise UserError(
                f"The run has had {trainer.global_step:,} steps already, the last of them not yet "
                "validated. Set trainer.max_steps higher."
            )
        if len(self._processes) != trainer.world_size:
            raise UserError(
                f"The run was trained by {len(self._processes)} process(es), not "
                f"{trainer.world_size}. Set trainer.devices as it was."
            )
        mine = self._processes[trainer.global_rank]
        self._processes = None
        assert isinstance(pl_module, LanguageModelModule)
        pl_module.load_stream_state(mine["stream"])
        torch.set_rng_state(mine["random"]["cpu"])
        if "cuda" in mine["random"]:
            torch.cuda.set_rng_state(mine["random"]["cuda"], pl_module.device)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Saves if it is time."""
        if batch_idx == 0:
            return
        due = time.monotonic() - self._saved_at >= self._interval_seconds
        if trainer.world_size > 1:  # the clocks of the processes differ
            if batch_idx % STEPS_BETWEEN_AGREEMENTS:
                return
            due = trainer.strategy.broadcast(due)
        if due:
            self.save(trainer, before_a_window=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves, and notes whether the validation was the best."""
        metrics = trainer.callback_metrics
        if self._monitor not in metrics and "val/nll" in metrics:
            raise UserError(
                f"callbacks.checkpoints.monitor={self._monitor} is no metric. There are "
                f"{', '.join(sorted(metrics))}."
            )
        # Before the first validation there is none. A nan is never better.
        score = float(metrics.get(self._monitor, math.nan))
        is_best = score < (math.inf if self.best_score is None else self.best_score)
        if is_best:
            self.best_score = score
        self.save(trainer, is_best=is_best)

    def save(
        self, trainer: L.Trainer, *, before_a_window: bool = False, is_best: bool = False
    ) -> None:
        """Writes ``last.ckpt``.

        Args:
            trainer: The trainer, at the start of a training step or at the end of an epoch.
            before_a_window: Whether it is at the start of a step, which is then not yet begun.
            is_best: Whether the same is to be ``best.ckpt``.

        Raises:
            UserError: The file cannot be written. What was there before stays.
        """
        new = self._folder / "new.ckpt"
        self._before_a_window = before_a_window
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            try:
                # In this order: a run that ends in between repeats the epoch, and so the best.
                if is_best:
                    _link(new, self._folder / "best.ckpt")
                if self.last_path.exists():
                    _link(self.last_path, self._folder / "previous.ckpt")
                new.replace(self.last_path)
                flush_to_disk(self._folder)
            except OSError as error:
                raise UserError(
                    f"The checkpoint {self.last_path} cannot be written: {error.strerror}. The one "
                    "from before is whole."
                ) from error
        trainer.strategy.barrier()  # the others would look for a best.ckpt that is not yet there
        self._saved_at = time.monotonic()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds what Lightning leaves out."""
        assert isinstance(pl_module, LanguageModelModule)
        random = {"cpu": torch.get_rng_state()}
        if pl_module.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        # Not on a GPU, or each process would open all GPUs to read the others' states.
        stream = move_data_to_device(pl_module.stream_state(), "cpu")
        mine = {"random": random, "stream": stream}
        checkpoint["processes"] = _gather(mine, trainer.world_size)
        checkpoint["csv"] = [logger.state_dict() for logger in _csv_loggers(trainer.loggers)]
        if self._before_a_window:
            # Lightning has counted the window that is about to begin.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for count in (progress["total"], progress["current"]):
                count["ready"] = count["completed"]
            progress["is_last_batch"] = False

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Tells the CSV files their rows; the rest waits for the start of the training."""
        self._processes = checkpoint["processes"]
        for logger, state in zip(_csv_loggers(trainer.loggers), checkpoint["csv"], strict=False):
            logger.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """The best score."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best score."""
        self.best_score = state_dict["best_score"]


def _csv_loggers(loggers: list[Logger]) -> list[MetricsCSV]:
    return [logger for logger in loggers if isinstance(logger, MetricsCSV)]


def _gather(mine: Any, world_size: int) -> list[Any]:
    """What each process has, by rank."""
    if world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def _link(existing: Path, name: Path) -> None:
    """Gives a file a second name, whatever had that name before."""
    temporary = name.with_name(f"{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(existing, temporary)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        try:
            shutil.copyfile(existing, temporary)  # a file system without hard links
            flush_to_disk(temporary)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    temporary.replace(name)
    temporary.unlink(missing_ok=True)  # it is still there if both were the same file
