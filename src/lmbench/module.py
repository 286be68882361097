"""A language model in training: carries the hidden state, computes the loss, logs.

Shape letters: T time steps of a window, B columns.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lmbench.data.batching import Batch
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError
from lmbench.loss.activation_penalty import (
    activation_regularization,
    temporal_activation_regularization,
)
from lmbench.model.core import State, detach_state
from lmbench.model.dropout import Dropouts
from lmbench.model.language_model import LanguageModel
from lmbench.optim.phased_lr import PhasedLR
from lmbench.schedule import num_steps, require_num_steps, require_time_limit
from lmbench.score import Score, ScoreSums


class LanguageModelModule(L.LightningModule):
    """Truncated back-propagation through time over the windows of a stream.

    The detached state at the end of a window is where the next one starts; each stage has its own
    state, zero at the start of each of its epochs.

    Logs ``train/nll`` (nats per token since the last log), ``val/nll``, ``test/nll``, their
    ``*/ppl`` and ``lr`` (before the scaling by a window's length).

    Args:
        model: The language model, plain PyTorch.
        optimizer: Makes the optimizer from the parameters.
        scheduler: Makes the learning-rate schedule from ``(optimizer, total_steps=…)``, stepped
            after each training step, or a ``ReduceLROnPlateau``, stepped by each validation's nats
            per token; None keeps the learning rate. A :class:`~lmbench.optim.PhasedLR` may also
            scale the model's dropouts.
        ar_alpha: Weight of the activation regularization on the dropped output (Merity et al.
            2017, section 4.6).
        tar_beta: Weight of the temporal activation regularization on the raw output (ibid.).

    Raises:
        ValueError: A weight is negative or not finite.

    Attributes:
        scores: Stage ("val", "test") → what the model scored in its latest epoch.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        scheduler: Callable[..., LRScheduler | ReduceLROnPlateau] | None = None,
        *,
        ar_alpha: float = 0.0,
        tar_beta: float = 0.0,
    ) -> None:
        super().__init__()
        for name, weight in (("ar_alpha", ar_alpha), ("tar_beta", tar_beta)):
            if not 0.0 <= weight < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, not {weight}")
        self.model = model
        self._dropouts = Dropouts(model)
        self.scores: dict[str, Score] = {}
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._ar_alpha = ar_alpha
        self._tar_beta = tar_beta
        self._states: dict[str, State | None] = {}
        self._lr_scale = 1.0
        self._train_nats: Tensor | float = 0.0
        self._train_num_tokens = 0
        self._sums = ScoreSums()

    def stream_state(self) -> dict[str, Any]:
        """What training carries from window to window besides the weights, in plain values."""
        return {
            "state": self._states["train"],
            "nats": self._train_nats,
            "num_tokens": self._train_num_tokens,
        }

    def load_stream_state(self, state: Mapping[str, Any]) -> None:
        """Takes up a :meth:`stream_state`, which may be that of another device or precision."""
        hidden = state["state"]
        if hidden is not None:
            # To the weights' precision: autocast rounds again what it had rounded, to the same.
            like = self.model.embedding.weight
            hidden = tuple(
                tuple(
                    x.to(self.device, like.dtype if x.is_floating_point() else None) for x in layer
                )
                for layer in hidden
            )
        nats = state["nats"]
        self._states["train"] = hidden
        self._train_nats = nats.to(self.device) if isinstance(nats, Tensor) else nats
        self._train_num_tokens = state["num_tokens"]

    def on_fit_start(self) -> None:
        """Lets each process draw its own dropout masks: all are seeded alike, for equal weights."""
        if self.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a resume that would not follow the schedule to its end.

        Here too, as a run that is over already never comes to its start.

        Raises:
            UserError: The schedule was made for another number of steps, or for a limit of time.
        """
        for scheduler in checkpoint["lr_schedulers"]:
            if "total_steps" in scheduler:
                require_num_steps(self.trainer, scheduler["total_steps"])
            if scheduler.get("progress", 0.0) > 0:
                require_time_limit(self.trainer)

    def on_train_start(self) -> None:
        """Refuses a schedule that the run would not follow to its end.

        Raises:
            UserError: The schedule was made for another number of steps.
        """
        scheduler: Any = self.lr_schedulers()
        if hasattr(scheduler, "total_steps"):
            require_num_steps(self.trainer, scheduler.total_steps)

    def on_train_epoch_start(self) -> None:
        """The stream starts anew, from a zero state."""
        self._states["train"] = None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Notes the window's length before the optimizer runs the step's closure; sets dropouts."""
        self._lr_scale = batch.lr_scale
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, PhasedLR):
            self._dropouts.scale(scheduler.dropout_factor)
        if self._logs_this_step():
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean nats per token of a window, with the activation penalties added."""
        output, raw_output, state = self.model(batch.tokens, self._states["train"])
        self._states["train"] = detach_state(state)
        nll = self.model.head.loss(output, batch.targets)
        self._log_training(nll.detach(), batch.num_scored)
        loss = nll
        if self._ar_alpha:
            loss = loss + self._ar_alpha * activation_regularization(output)
        if self._tar_beta:
            loss = loss + self._tar_beta * temporal_activation_regularization(raw_output)
        return loss

    def on_train_batch_end(self, outputs, batch: Batch, batch_idx: int) -> None:
        """Makes a run validate at its end, be it inside an epoch or one of those left out."""
        trainer: Any = self.trainer
        ends = self.global_step == trainer.max_steps or (
            trainer.current_epoch + 1 == trainer.max_epochs and trainer.is_last_batch
        )
        # An epoch's own validation needs no stop, with which Lightning would log this step too.
        validates_epochs = trainer.val_check_batch == trainer.num_training_batches
        if ends and not (trainer.is_last_batch and validates_epochs):
            trainer.should_stop = True
        if (ends or trainer.should_stop) and trainer.check_val_every_n_epoch is not None:
            trainer.check_val_every_n_epoch = 1
        interval = trainer.log_every_n_steps
        if trainer.should_stop and interval > 0 and self.global_step % interval:
            # Lightning logs the last step of a run, and would log what an earlier one has left.
            trainer.fit_loop._results.reset()

    def on_train_end(self) -> None:
        """Leaves the model with the dropouts that it was built with."""
        self._dropouts.scale(1.0)

    def on_validation_epoch_start(self) -> None:
        """A zero state for the validation stream; training's own is untouched."""
        self._states["val"] = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the window's nats and tokens to the sums of the split."""
        self._score(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Perplexity of the split, from its sums; a plateau may lower the learning rate."""
        self._log_scores("val")
        scheduler = self.lr_schedulers() if self.trainer.state.fn == TrainerFn.FITTING else None
        if isinstance(scheduler, ReduceLROnPlateau) and "val" in self.scores:
            scheduler.step(self.scores["val"].nll)

    def on_test_epoch_start(self) -> None:
        """A zero state for the test stream."""
        self._states["test"] = None

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the window's nats and tokens to the sums of the split."""
        self._score(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Perplexity of the split, from its sums."""
        self._log_scores("test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and, where there is one, its schedule over the exact number of steps.

        Raises:
            UserError: The schedule would make a dropout's probability 1 or more.
        """
        optimizer = self._make_optimizer(self.model.parameters())
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer, total_steps=num_steps(self.trainer))
        if isinstance(scheduler, PhasedLR):
            factor, largest = scheduler.largest_dropout_factor, self._dropouts.largest
            if factor * largest >= 1:
                raise UserError(
                    f"A dropout_factor of {factor:g} in scheduler.phases would make the dropout of "
                    f"{largest:g} a probability of {factor * largest:g}. It must stay below 1."
                )
        if isinstance(scheduler, ReduceLROnPlateau):
            # Its steps are taken above. Lightning's would come when its state has been saved, and
            # would want a validation in each epoch.
            return {
                "optimizer": optimizer,
                "lr_scheduler": {
                    "scheduler": scheduler,
                    "monitor": "val/nll",
                    "frequency": sys.maxsize,
                },
            }
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        """Steps with the learning rate times the window's drawn length over the base length.

        Merity et al. 2017, section 4.1: a short window must not weigh as much as a long one.
        """
        lrs = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self._lr_scale
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None
    ) -> None:
        """Clips also for a fused optimizer, unless a scaler is unscaled within its step.

        Lightning refuses that for every mixed precision, but only float16 has a scaler.

        Raises:
            UserError: There is a scaler, and the optimizer is fused.
        """
        plugin = self.trainer.precision_plugin
        unscales_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)
        elif gradient_clip_val and isinstance(plugin, MixedPrecision) and unscales_itself:
            raise UserError(
                "With trainer.precision=16-mixed, a fused optimizer's gradients cannot be clipped. "
                "Set trainer.precision=bf16-mixed, or optimizer.fused=null."
            )
        else:
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )

    def _log_training(self, nll: Tensor, num_tokens: int) -> None:
        self._train_nats = self._train_nats + nll * num_tokens
        self._train_num_tokens += num_tokens
        if not self._logs_this_step():
            return
        # Every process has as many columns, so the mean over processes is that over tokens.
        mean = self.trainer.strategy.reduce(
            self._train_nats / self._train_num_tokens, reduce_op="mean"
        )
        # Lightning reads what is for the progress bar after every step, and so would wait for the
        # GPU every time.
        mean = torch.as_tensor(mean).cpu()
        self._train_nats, self._train_num_tokens = 0.0, 0
        self.log("train/nll", mean)
        self.log("train/ppl", mean.exp(), prog_bar=True)

    def _logs_this_step(self) -> bool:
        trainer: Any = self.trainer  # its connectors set what its class does not declare
        interval: int = trainer.log_every_n_steps
        return interval > 0 and (self.global_step + 1) % interval == 0

    def _score(self, batch: Batch, stage: str) -> None:
        output, _, state = self.model(batch.tokens, self._states[stage])
        self._states[stage] = state
        nats = self.model.head.loss(output, batch.targets, reduction="sum")
        self._sums.update(nats, batch.num_scored)

    def _log_scores(self, stage: str) -> None:
        nats, num_tokens = self._sums.compute()
        self._sums.reset()
        if num_tokens == 0:
            return
        trainer: Any = self.trainer
        datamodule: LanguageModelDataModule = trainer.datamodule
        score = Score(float(nats), int(num_tokens), datamodule.extra_divisor[stage])
        self.scores[stage] = score
        # The sums are those of all processes already; sync_dist tells Lightning so. It reduces them
        # all the same, and on GPUs only what lies there can be.
        nll = torch.tensor(score.nll, dtype=torch.float64, device=self.device)
        self.log(f"{stage}/nll", nll, sync_dist=True)
        self.log(f"{stage}/ppl", nll.exp(), prog_bar=True, sync_dist=True)
