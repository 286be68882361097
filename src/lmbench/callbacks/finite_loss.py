"""Stops a run whose loss has become nan or infinite."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from lmbench.callbacks.checkpoints import Checkpoints
from lmbench.data.batching import Batch
from lmbench.errors import UserError

_STEPS_BETWEEN_READS = 50


class FiniteLoss(L.Callback):
    """Raises ``UserError`` at a loss that is nan or infinite; the checkpoints from before stay.

    On a CPU each step is looked at. On a GPU the first bad step is noted on the device and read
    every 50 steps, and before a checkpoint is saved. Then the weights are looked at too, so that
    no bad one ever is.
    """

    def __init__(self) -> None:
        self._first_bad: Tensor | None = None
        self._steps_unread = 0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Looks at the loss, or notes it for later."""
        loss = outputs["loss"].detach()
        if loss.device.type == "cpu":
            if not loss.isfinite():
                what = f"The loss of step {trainer.global_step:,} is {loss.item()}"
                self._stop(trainer, pl_module, what, batch)
            return
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, device=loss.device)
        is_first = ~loss.isfinite() & (self._first_bad < 0)
        self._first_bad = torch.where(is_first, trainer.global_step, self._first_bad)
        self._steps_unread += 1
        if self._steps_unread >= _STEPS_BETWEEN_READS:
            self._read(trainer, pl_module, batch)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Looks at the losses since the last look, and at the weights."""
        self._read(trainer, pl_module, None)
        if not all(parameter.isfinite().all() for parameter in pl_module.parameters()):
            what = f"A weight is nan or infinite after step {trainer.global_step:,}"
            self._stop(trainer, pl_module, what, None)

    def _read(self, trainer: L.Trainer, module: L.LightningModule, batch: Batch | None) -> None:
        self._steps_unread = 0
        step = -1 if self._first_bad is None else int(self._first_bad)
        if step >= 0:
            self._stop(trainer, module, f"The loss of step {step:,} is nan or infinite", batch)

    def _stop(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        what: str,
        batch: Batch | None,
    ) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else float("nan")
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        checkpoints = trainer.checkpoint_callback
        is_saved = isinstance(checkpoints, Checkpoints) and checkpoints.last_path.exists()
        window = "" if batch is None else f", window of {len(batch.tokens)} steps"
        raise UserError(
            f"{what} (epoch {trainer.current_epoch}, lr {lr:g}{window}, gradient norm {norm:g} "
            "after clipping). Set optimizer.lr or trainer.gradient_clip_val lower. "
            + ("The last checkpoint is from before that." if is_saved else "None was saved yet.")
        )
