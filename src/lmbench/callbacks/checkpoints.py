"""Checkpoints from which a run continues exactly as if it had never stopped."""

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lmbench.callbacks.metrics_csv import MetricsCSV
from lmbench.callbacks.time_limit import TimeLimit
from lmbench.errors import UserError
from lmbench.files import flush_to_disk, replacing
from lmbench.saved.checkpoint import FORMAT, FORMAT_KEY, read_checkpoint, require_plain
from lmbench.training.lightning_internals import (
    resumes_within_epoch,
    set_max_steps,
    uncount_window,
)

STEPS_BETWEEN_AGREEMENTS = 10
"""Steps between agreements among several processes: for each, they wait, and so does a GPU."""


class CheckpointIO(TorchCheckpointIO):
    """Writes checkpoint files whole or not at all, and reads them without running any code."""

    def __init__(self) -> None:
        super().__init__()
        self._is_readable = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        """Writes the file; it is on disk when this returns.

        Raises:
            OSError: The disk is full or the folder cannot be written; what was there stays.
            UserError: A callback, scheduler or core of the user's has a state that is not plain,
                with which the file could be written but not read.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as temporary:
                with temporary.open("wb") as file:
                    torch.save({FORMAT_KEY: FORMAT, **checkpoint}, file)
                if not self._is_readable:  # found out at the run's end, its weights would be lost
                    require_plain(temporary)
                    self._is_readable = True
        except RuntimeError as error:
            # torch's writer raises an error of its own while it handles the system's.
            raise error.__context__ or error from None
        flush_to_disk(path.parent)

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict[str, Any]:
        """The file's content.

        Raises:
            UserError: See :func:`lmbench.saved.checkpoint.read_checkpoint`.
        """
        return read_checkpoint(Path(path))


class Checkpoints(Checkpoint):
    """Saves ``last.ckpt`` every few minutes and at each epoch's end, and ``best.ckpt``.

    ``previous.ckpt`` is the ``last.ckpt`` before. Files are replaced, never rewritten, so each of
    them is whole at any moment. Besides what Lightning saves, a checkpoint holds what each process
    needs: its random generators, its hidden state and its running sums; and how many rows the CSV
    files had.

    Within an epoch, it saves at the start of a step: only then is everything about the step before
    done and logged.

    Args:
        dirpath: The folder.
        interval_minutes: Time between two checkpoints during an epoch.

    Raises:
        ValueError: ``interval_minutes`` is negative.
    """

    def __init__(self, dirpath: str | Path, *, interval_minutes: float = 10.0) -> None:
        if not interval_minutes >= 0:
            raise ValueError(f"interval_minutes must not be negative, got {interval_minutes}")
        self._folder = Path(dirpath)
        self._last = self._folder / "last.ckpt"
        self._interval_seconds = 60 * interval_minutes
        self._saved_at = 0.0
        self._before_a_window = False
        self._processes: list[dict[str, Any]] | None = None
        self._max_steps = -1

    def on_fit_start(self, trainer, pl_module) -> None:
        """Before a resume, hides a limit of steps from Lightning until the training starts.

        Raises:
            UserError: The processes have different folders. Only the first one writes, and the
                others would miss its checkpoint when the training is done.
        """
        folders = sorted(set(_gather(str(self._folder), trainer.world_size)))
        if len(folders) > 1:
            raise UserError(
                f"The processes of this run have different folders: {', '.join(folders)}. Name one "
                "for all of them with hydra.run.dir=DIR."
            )
        if self._processes is not None:
            self._max_steps = trainer.max_steps
            set_max_steps(trainer, -1)

    def on_train_start(self, trainer, pl_module: Any) -> None:
        """After a resume, restores what belongs to this process.

        Raises:
            UserError: The number of processes has changed; or the run has had more steps than
                ``trainer.max_steps`` now allows, or as many but not yet the validation after them.
        """
        self._saved_at = time.monotonic()
        if self._processes is None:
            return
        set_max_steps(trainer, self._max_steps)
        num_steps = trainer.global_step
        least = num_steps + resumes_within_epoch(trainer)
        _require_length("max_steps", self._max_steps, num_steps, least)
        if len(self._processes) != trainer.world_size:
            raise UserError(
                f"The run was trained by {len(self._processes)} process(es), not "
                f"{trainer.world_size}. Set trainer.devices to match."
            )
        mine = self._processes[trainer.global_rank]
        self._processes = None
        pl_module.load_stream_state(mine["stream"])
        torch.set_rng_state(mine["random"]["cpu"])
        if "cuda" in mine["random"]:
            torch.cuda.set_rng_state(mine["random"]["cuda"], pl_module.device)

    def on_fit_end(self, trainer, pl_module) -> None:
        """After a resume with nothing left to train, checks what the training would have checked.

        Raises:
            UserError: The run has had more steps than ``trainer.max_steps`` now allows.
        """
        if self._processes is not None:
            _require_length("max_steps", self._max_steps, trainer.global_step)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
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

    def on_train_epoch_end(self, trainer, pl_module: Any) -> None:
        """Saves, also as the best if this epoch's validation was the best."""
        best = pl_module.best
        self.save(trainer, is_best=best is not None and best.epoch == trainer.current_epoch)

    def save(
        self, trainer: L.Trainer, *, before_a_window: bool = False, is_best: bool = False
    ) -> None:
        """Writes ``last.ckpt``.

        Args:
            trainer: The trainer, at the start of a training step or at the end of an epoch.
            before_a_window: Whether it is at the start of a step, which then has not begun yet.
            is_best: Whether it is to be ``best.ckpt`` as well.

        Raises:
            OSError: The file cannot be written. What was there before stays.
        """
        new = self._folder / "new.ckpt"
        self._before_a_window = before_a_window
        trainer.save_checkpoint(new)
        self._before_a_window = False  # a ModelCheckpoint saves after a window
        if trainer.is_global_zero:
            # In this order: a run that ends in between repeats the epoch, and saves the best again.
            if is_best:
                _link(new, self._folder / "best.ckpt")
            if self._last.exists():
                _link(self._last, self._folder / "previous.ckpt")
            new.replace(self._last)
            flush_to_disk(self._folder)
        trainer.strategy.barrier()  # the others would look for a best.ckpt that is not yet there
        self._saved_at = time.monotonic()

    def on_save_checkpoint(self, trainer, pl_module: Any, checkpoint) -> None:
        """Adds what Lightning leaves out."""
        random = {"cpu": torch.get_rng_state()}
        if pl_module.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        # Not on a GPU, or each process would open all GPUs to read the others' states.
        stream = move_data_to_device(pl_module.stream_state(), "cpu")
        mine = {"random": random, "stream": stream}
        checkpoint["processes"] = _gather(mine, trainer.world_size)
        csv = (logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
        checkpoint["csv"] = [logger.state_dict() for logger in csv]
        if self._before_a_window:
            uncount_window(checkpoint)

    def on_load_checkpoint(self, trainer: Any, pl_module, checkpoint) -> None:
        """Tells the CSV loggers how many rows to keep; the rest waits for the training to start.

        Raises:
            KeyError: A state is missing, without which something would start anew.
            UserError: The run has had more epochs than ``trainer.max_epochs`` now allows; the state
                of a ``ModelCheckpoint`` names a URL; or see
                :meth:`lmbench.callbacks.metrics_csv.MetricsCSV.load_state_dict`.
        """
        checkpoint["loops"]["fit_loop"]
        _require_length("max_epochs", trainer.max_epochs, checkpoint["epoch"] + 1)
        for callback in trainer.callbacks:
            if callback.state_dict() and not isinstance(callback, TimeLimit):  # a resume may add it
                checkpoint["callbacks"][callback.state_key]
            # It removes files that its state names: in its folder only, unless one is a URL.
            if isinstance(callback, ModelCheckpoint):
                state = checkpoint["callbacks"][callback.state_key]
                if re.search("::|://", str(state)):
                    raise UserError("The checkpoint of ModelCheckpoint names a URL.")
        self._processes = checkpoint["processes"]
        csv = (logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
        for logger, state in zip(csv, checkpoint["csv"], strict=False):
            logger.load_state_dict(state)


def _require_length(name: str, limit: int | None, had: int, least: int = 0) -> None:
    """Refuses a limit on the length of a run that is below what the run has had."""
    least = max(had, least)
    if limit is not None and 0 <= limit < least:
        unit = {"max_epochs": "epoch", "max_steps": "step"}[name]
        raise UserError(
            f"trainer.{name}={limit}: the run has reached {unit} {had:,} already. "
            f"Set trainer.{name} to {least} or more."
        )


def _gather(mine: Any, world_size: int) -> list[Any]:
    """What each process has, by rank."""
    if world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def _link(existing: Path, name: Path) -> None:
    """Gives a file a second name, replacing whatever had that name before."""
    with replacing(name) as temporary:
        try:
            os.link(existing, temporary)
        except OSError:  # a file system without hard links; a full disk fails again
            shutil.copyfile(existing, temporary)
