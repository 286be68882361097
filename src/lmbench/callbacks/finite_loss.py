"""Stops a run whose loss has become nan or infinite."""

from typing import Any

import lightning as L

from lmbench.errors import Diverged
from lmbench.training.module import logs_at


class FiniteLoss(L.Callback):
    """Raises ``Diverged`` at a loss that is nan or infinite; the checkpoints from before stay.

    On a CPU, each step is checked; on a GPU, which would have to wait for that, each step that is
    logged. The weights are checked before a checkpoint is saved, so that no bad one ever is.
    """

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx) -> None:
        """Checks the loss."""
        loss = outputs["loss"].detach()
        is_checked = loss.device.type == "cpu" or logs_at(trainer, trainer.global_step)
        if is_checked and not loss.isfinite():
            self._stop(trainer, f"The loss of step {trainer.global_step:,} is {loss.item()}")

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        """Checks the weights."""
        if not all(parameter.isfinite().all() for parameter in pl_module.parameters()):
            self._stop(trainer, f"A weight is not finite after step {trainer.global_step:,}")

    def _stop(self, trainer: L.Trainer, what: str) -> None:
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        raise Diverged(
            f"{what} (epoch {trainer.current_epoch + 1}, lr {lr:g}). Lower optimizer.lr or "
            "trainer.gradient_clip_val. Checkpoints saved before this are intact."
        )
