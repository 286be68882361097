"""A language model in training: carries the hidden state, computes the loss, logs."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lmbench.data.batching import Batch
from lmbench.errors import Diverged, UserError
from lmbench.loss.activation_penalty import (
    activation_regularization,
    temporal_activation_regularization,
)
from lmbench.model.contracts import State, detach_state
from lmbench.model.dropout import Dropouts
from lmbench.model.language_model import LanguageModel
from lmbench.optim.phased_lr import PhasedLR
from lmbench.perplexity import Score
from lmbench.training.lightning_internals import forget_logged

TRAINER_OPTIONS: Mapping[str, Any] = {
    "num_sanity_val_steps": 0,  # they would enter the history of NT-ASGD's trigger
    "reload_dataloaders_every_n_epochs": 1,  # each epoch has its own windows
    "use_distributed_sampler": False,  # each process reads its own columns
}
"""What a ``lightning.Trainer`` must be told for a :class:`LanguageModelModule`."""


def logs_at(trainer: Any, step: int) -> bool:
    """Whether the trainer logs at a step of the training, counted from 1."""
    interval: int = trainer.log_every_n_steps  # may be 0: never
    return interval > 0 and step % interval == 0


class Best(NamedTuple):
    """The best validation of a run."""

    epoch: int
    score: Score


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
            per token; None keeps the learning rate. A :class:`lmbench.optim.PhasedLR` may also
            scale the model's dropouts.
        ar_alpha: Weight of the activation regularization on the dropped output (Merity et al.
            2017, section 4.6).
        tar_beta: Weight of the temporal activation regularization on the raw output (ibid.).

    Raises:
        ValueError: A weight is negative or not finite.

    Attributes:
        scores: Stage ("val", "test") → what the model scored in its latest epoch.
        best: The validation with the fewest nats per token so far, the first if several tie; None
            before the first finite one. Everything that needs the best epoch reads it here.
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
        self._dropouts = Dropouts(model.dropouts)
        self.scores: dict[str, Score] = {}
        self.best: Best | None = None
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._ar_alpha = ar_alpha
        self._tar_beta = tar_beta
        self._states: dict[str, State] = {}
        self._lr_scale = 1.0
        self._train_nats: Tensor | float = 0.0
        self._train_num_tokens = 0
        self._nats: Tensor | float = 0.0  # of the split that is being scored
        self._num_tokens = 0

    def stream_state(self) -> dict[str, Any]:
        """What training carries from window to window besides the weights, in plain values."""
        return {
            "state": self._states["train"],
            "nats": self._train_nats,
            "num_tokens": self._train_num_tokens,
        }

    def load_stream_state(self, state: Mapping[str, Any]) -> None:
        """Restores a :meth:`stream_state`, which may come from another device or precision."""
        here = move_data_to_device(dict(state), self.device)
        # What autocast had rounded, it will round to the same again. Beside weights in half
        # precision, a core may keep sums in float32.
        dtype = torch.promote_types(self.model.embedding.weight.dtype, torch.float32)
        self._states["train"] = tuple(
            tuple(x.to(dtype) if x.is_floating_point() else x for x in layer)
            for layer in here["state"]
        )
        self._train_nats = here["nats"]
        self._train_num_tokens = here["num_tokens"]

    def on_fit_start(self) -> None:
        """Makes each process draw its own dropout masks: all are seeded alike for equal weights."""
        if self.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + self.global_rank)

    def on_train_start(self) -> None:
        """Lets the steps of a short epoch be logged at its end."""
        trainer: Any = self.trainer
        num_steps = trainer.datamodule.num_training_steps(1, trainer.limit_train_batches)
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, num_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the best validation."""
        checkpoint["best"] = self.best and (self.best.epoch, *self.best.score)

    def restore_best(self, checkpoint: dict[str, Any]) -> None:
        """Restores the best validation until a checkpoint was saved."""
        best = checkpoint["best"]
        self.best = best and Best(best[0], Score(*best[1:]))

    on_load_checkpoint = restore_best

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Notes the window's length before the optimizer runs the step's closure; sets dropouts."""
        self._lr_scale = batch.lr_scale
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, PhasedLR):
            self._dropouts.scale(scheduler.dropout_factor)
        if logs_at(self.trainer, self.global_step + 1):
            lr = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log("lr", torch.tensor(lr, dtype=torch.float64))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean nats per token of a window, with the activation penalties added."""
        output, raw_output = self._read(batch, batch_idx, "train")
        nll = self.model.head.loss(output, batch.targets)
        self._log_training(nll.detach(), batch.num_scored)
        loss = nll
        if self._ar_alpha:
            loss = loss + self._ar_alpha * activation_regularization(output)
        if self._tar_beta:
            loss = loss + self._tar_beta * temporal_activation_regularization(raw_output)
        return loss

    def on_train_batch_end(self, outputs, batch: Batch, batch_idx: int) -> None:
        """Makes a run validate at its end, even within an epoch or in one without validation."""
        trainer: Any = self.trainer
        is_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        ends = self.global_step == trainer.max_steps or (is_last_epoch and trainer.is_last_batch)
        # An epoch's own validation needs no stop, which would make Lightning log this step too.
        if ends and not trainer.is_last_batch:
            trainer.should_stop = True
        if ends or trainer.should_stop:
            trainer.check_val_every_n_epoch = 1
        if trainer.should_stop and not logs_at(trainer, self.global_step):
            forget_logged(trainer)

    def on_train_end(self) -> None:
        """Leaves the model with the dropouts that it was built with."""
        self._dropouts.scale(1.0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the window's nats and tokens to the sums of the split."""
        self._score(batch, batch_idx, "val")

    def on_validation_epoch_end(self) -> None:
        """Perplexity of the split, from its sums; a plateau may lower the learning rate."""
        self._log_scores("val")
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        score, scheduler = self.scores["val"], self.lr_schedulers()
        # The perplexity can be infinite where nll is not; nan is never less.
        if score.ppl < math.inf and score.nll < (self.best.score.nll if self.best else math.inf):
            self.best = Best(self.current_epoch, score)
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(score.nll)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds the window's nats and tokens to the sums of the split."""
        self._score(batch, batch_idx, "test")

    def on_test_epoch_end(self) -> None:
        """Perplexity of the split, from its sums, with the epoch whose weights were tested.

        Raises:
            Diverged: It is too large for a number.
        """
        self._log_scores("test")
        if not math.isfinite(self.scores["test"].ppl):
            raise Diverged(
                f"The best weights give test {self.scores['test'].nll:g} nats a token, which is no "
                "perplexity any more. Lower optimizer.lr or trainer.gradient_clip_val."
            )
        if self.best is not None:
            self.log("epoch", float(self.best.epoch), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer and, where there is one, its schedule over the exact number of steps."""
        optimizer = self._make_optimizer(self.model.parameters())
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer, total_steps=self.num_steps)
        if isinstance(scheduler, ReduceLROnPlateau):
            # It is stepped above. Lightning would step it only after its state has been saved, and
            # would want a validation in each epoch.
            when = {"monitor": "val/nll", "frequency": sys.maxsize}
        else:
            when = {"interval": "step"}
        config: Any = {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **when}}
        return config

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
        """Clips for a fused optimizer too, unless its step undoes a scaler's scaling.

        Lightning refuses to do so in every mixed precision, but only float16 has a scaler.

        Raises:
            UserError: There is a scaler, and the optimizer is fused.
        """
        plugin = self.trainer.precision_plugin
        has_scaler = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
        unscales_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
        if gradient_clip_val and has_scaler and unscales_itself:
            raise UserError(
                "With trainer.precision=16-mixed, a fused optimizer's gradients cannot be clipped. "
                "Set trainer.precision=bf16-mixed, or optimizer.fused=null."
            )
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)

    @property
    def num_steps(self) -> int | None:
        """The most steps that the run can have; None if their number is not limited."""
        trainer: Any = self.trainer
        if trainer.max_epochs is None or trainer.max_epochs < 0:
            return trainer.max_steps if trainer.max_steps >= 0 else None
        return trainer.datamodule.num_training_steps(
            trainer.max_epochs, trainer.limit_train_batches, trainer.max_steps
        )

    def _log_training(self, nll: Tensor, num_tokens: int) -> None:
        self._train_nats = self._train_nats + nll * num_tokens
        self._train_num_tokens += num_tokens
        if not logs_at(self.trainer, self.global_step + 1):
            return
        # All processes have equally many columns, so the mean over processes is that over tokens.
        mean = self.trainer.strategy.reduce(
            self._train_nats / self._train_num_tokens, reduce_op="mean"
        )
        # Lightning reads what the progress bar shows after every step, and so would wait for the
        # GPU every time.
        mean = torch.as_tensor(mean).cpu()
        self._train_nats, self._train_num_tokens = 0.0, 0
        self.log("train/nll", mean)
        self.log("train/ppl", mean.exp(), prog_bar=True)

    def _read(self, batch: Batch, batch_idx: int, stage: str) -> tuple[Tensor, Tensor]:
        """The model's outputs for a window, read from where the one before ended."""
        before = self._states.get(stage) if batch_idx > 0 else None
        output, raw_output, state = self.model(batch.tokens, before)
        self._states[stage] = detach_state(state)
        return output, raw_output

    def _score(self, batch: Batch, batch_idx: int, stage: str) -> None:
        output, _ = self._read(batch, batch_idx, stage)
        nats = self.model.head.loss(output, batch.targets, reduction="sum")
        # A split's nats, added up window by window, need more than float32's 24 bits.
        self._nats = self._nats + nats.double()
        self._num_tokens += batch.num_scored

    def _log_scores(self, stage: str) -> None:
        trainer: Any = self.trainer
        sums = torch.tensor(
            [float(self._nats), self._num_tokens], dtype=torch.float64, device=self.device
        )
        self._nats, self._num_tokens = 0.0, 0
        nats, num_tokens = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        score = Score(nats, int(num_tokens), trainer.datamodule.extra_divisor[stage])
        self.scores[stage] = score
        # The sums are over all processes already; sync_dist tells Lightning so. Lightning reduces
        # them nevertheless, and with GPUs only tensors on a GPU can be reduced.
        nll = torch.tensor(score.nll, dtype=torch.float64, device=self.device)
        self.log(f"{stage}/nll", nll, sync_dist=True)
        self.log(f"{stage}/ppl", nll.exp(), prog_bar=True, sync_dist=True)
