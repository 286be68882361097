"""What a resume changes in the run's directory, once it has been accepted."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lmbench.run.config import write_run_config
from lmbench.run.directory import DIVERGED
from lmbench.training.lightning_internals import purge_tensorboard

log = logging.getLogger(__name__)


class RunStart(L.Callback):
    """Updates the directory of a resumed run when its first step or its test begins.

    It writes the changed config, removes the results, which are those of older weights, and makes
    TensorBoard forget what came after the checkpoint. Not earlier: a resume that is refused changes
    nothing.

    Args:
        run_dir: The run's directory.
        changed: The config to write; None where the resume changes nothing.

    Attributes:
        first_step: The step that the run continues with; 0 for one that is new or starts over.
        has_begun: Whether the first step or the test has begun.
    """

    def __init__(self, run_dir: Path, changed: dict[str, Any] | None) -> None:
        self.first_step = 0
        self.has_begun = False
        self._run_dir = run_dir
        self._changed = changed

    def on_train_start(self, trainer, pl_module) -> None:
        """Keeps a run ended if early stopping ended it."""
        if _was_stopped_early(trainer):
            trainer.should_stop = True

    def setup(self, trainer, pl_module, stage: str) -> None:
        """Before the test, says so and updates the directory if nothing was left to train."""
        if stage != "test":
            return
        if trainer.is_global_zero and self.first_step and not self.has_begun:
            reason = ": early stopping has ended the run" if _was_stopped_early(trainer) else ""
            log.info("nothing was left to train%s; testing again", reason)
        self.on_train_batch_start(trainer, pl_module, None, 0)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Updates the directory as the training continues."""
        if trainer.is_global_zero and not self.has_begun:
            if self._changed is not None:
                write_run_config(self._changed, self._run_dir, replace=True)
            for name in ("results.json", DIVERGED):
                (self._run_dir / name).unlink(missing_ok=True)
            if self.first_step:
                purge_tensorboard(trainer, self.first_step)
        self.has_begun = True


def _was_stopped_early(trainer: Any) -> bool:
    reasons = {callback.stopping_reason for callback in trainer.early_stopping_callbacks}
    return bool(reasons - {EarlyStoppingReason.NOT_STOPPED})
