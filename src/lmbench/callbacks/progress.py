"""A line per validation, for the console and train.log."""

import logging
import math

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

log = logging.getLogger(__name__)


class Progress(L.Callback):
    """Logs the figures that matter after each validation; a terminal's bar is Lightning's own."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line."""
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        best = getattr(trainer.checkpoint_callback, "best_score", -math.inf)  # of those before
        is_best = metrics["val/nll"] < (math.inf if best is None else best)
        line = [f"epoch {trainer.current_epoch}", f"step {trainer.global_step:,}"]
        if "train/ppl" in metrics:
            line.append(f"train ppl {metrics['train/ppl']:.1f}")
        line.append(f"valid ppl {metrics['val/ppl']:.2f}{' (best)' if is_best else ''}")
        if "train/tokens_per_second" in metrics:
            line.append(f"{metrics['train/tokens_per_second']:,.0f} tokens/s")
        if "train/seconds" in metrics:
            line.append(f"{metrics['train/seconds'] / 60:.1f} min")
        log.info(" | ".join(line))
