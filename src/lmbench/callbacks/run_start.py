"""The start of a run in its directory: of a new one, or where an earlier part was stopped."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lmbench.errors import Diverged, UserError, is_out_of_memory
from lmbench.files import replace_text
from lmbench.run.choice import ChosenRun
from lmbench.run.config import replace_run_config, write_run_config
from lmbench.run.directory import (
    DIVERGED,
    alone_in,
    as_override,
    clear_run,
    last_checkpoint,
    remove_unfinished_files,
)
from lmbench.training.lightning_internals import purge_tensorboard

log = logging.getLogger(__name__)


class RunStart(L.Callback):
    """Prepares the directory of a run, and updates it when its first step or its test begins.

    Only then, a resume writes the changed config, removes the results, which are those of older
    weights, and makes TensorBoard forget what came after the checkpoint: one that is refused
    changes nothing.

    Args:
        run: The run.
        run_dir: Its directory.

    Attributes:
        first_step: The step that the run continues with; 0 for one that is new or starts over.
        has_begun: Whether the first step or the test has begun.
    """

    def __init__(self, run: ChosenRun, run_dir: Path) -> None:
        self.first_step = 0
        self.has_begun = False
        self._run = run
        self._run_dir = run_dir

    @contextmanager
    def in_directory(self, *, is_first: bool) -> Iterator[Path | None]:
        """Locks the directory and prepares it; notes there, or undoes, what an error leaves.

        Args:
            is_first: Whether this is the first process of the run, the only one that writes.

        Yields:
            The checkpoint to continue from; None if the run is new or had not saved yet.

        Raises:
            UserError: Another process is at work there; or the run cannot be resumed.
        """
        with alone_in(self._run_dir) if is_first else nullcontext():
            last = _checkpoint_to_resume(self._run_dir) if self._run.resumes else None
            if is_first:
                remove_unfinished_files(self._run_dir)
            if is_first and not self._run.resumes:
                write_run_config(self._run.config, self._run_dir, self._run.overrides)
            elif is_first and last is None:
                clear_run(self._run_dir)
            try:
                yield last
            except UserError as error:
                if isinstance(error, Diverged):  # as a resume would again
                    with suppress(OSError):  # the error itself is more important
                        replace_text(self._run_dir / DIVERGED, f"{error}\n")
                elif is_first and not self._run.resumes and not self.has_begun:
                    clear_run(self._run_dir)
                    for name in ("config.yaml", "overrides.json"):
                        (self._run_dir / name).unlink(missing_ok=True)
                raise
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                is_of_network = type(error).__name__.startswith("Dist")  # torch's: a port in use
                if not last or self.has_begun or is_of_network or is_out_of_memory(error):
                    raise
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise UserError(f"{last} cannot be resumed ({reason}).") from error

    def on_load_checkpoint(self, trainer, pl_module, checkpoint: dict[str, Any]) -> None:
        """Notes where the run continues."""
        self.first_step = checkpoint["global_step"]

    def on_train_start(self, trainer, pl_module) -> None:
        """Keeps a run ended that early stopping has ended."""
        if _was_stopped_early(trainer):
            trainer.should_stop = True

    def setup(self, trainer, pl_module, stage: str) -> None:
        """Before the test, says so and updates the directory if nothing was left to train."""
        if stage != "test":
            return
        if trainer.is_global_zero and self.first_step and not self.has_begun:
            reason = ": early stopping has ended the run" if _was_stopped_early(trainer) else ""
            log.info("nothing was left to train%s; testing again", reason)
        self._begin(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Says where the run continues, and updates the directory."""
        if trainer.is_global_zero and self.first_step and not self.has_begun:
            log.info("continuing after step %s", f"{self.first_step:,}")
        self._begin(trainer)

    def _begin(self, trainer: Any) -> None:
        if trainer.is_global_zero and not self.has_begun:
            if self._run.changed is not None:
                replace_run_config(self._run.changed, self._run_dir)
                (self._run_dir / "overrides.json").unlink(missing_ok=True)  # half of the truth
            for name in ("results.json", DIVERGED):
                (self._run_dir / name).unlink(missing_ok=True)
            if self.first_step:
                purge_tensorboard(trainer, self.first_step)
        self.has_begun = True


def _was_stopped_early(trainer: Any) -> bool:
    reasons = {callback.stopping_reason for callback in trainer.early_stopping_callbacks}
    return bool(reasons - {EarlyStoppingReason.NOT_STOPPED})


def _checkpoint_to_resume(run_dir: Path) -> Path | None:
    """Where a resume continues; None if the run was stopped before it saved.

    Raises:
        UserError: The run has ended, and there is no checkpoint any more.
    """
    last = last_checkpoint(run_dir)
    if last is None and (run_dir / "results.json").exists():
        raise UserError(
            f"{run_dir} has ended, and without last.ckpt it cannot be resumed. A new run can "
            f"start from its weights: {as_override('init_from', run_dir)}."
        )
    return last
