import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from lmbench.callbacks import finite_loss
from lmbench.callbacks.checkpoint_io import AtomicCheckpointIO
from lmbench.callbacks.checkpoints import Checkpoints
from lmbench.callbacks.finite_loss import FiniteLoss
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax
from lmbench.module import LanguageModelModule
from lmbench.saved.checkpoint import read_checkpoint

WORDS, LR, NUM_WINDOWS = 9, 0.125, 8


class Break(L.Callback):
    """Makes something of a step not finite; notes the gradients' norm and the window."""

    def __init__(self, what: str, step: int, value: float = math.nan) -> None:
        self._what, self._step, self._value = what, step, value
        self.norm = math.nan
        self.num_steps_of_window = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        is_now = trainer.global_step + 1 == self._step
        pl_module.extra = self._value if is_now and self._what == "loss" else 0.0
        if is_now and self._what == "weight":
            with torch.no_grad():
                pl_module.model.embedding.weight[3, 1] = self._value
        self.num_steps_of_window = len(batch.tokens)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        grads = [p.grad.double().flatten() for p in pl_module.parameters()]
        self.norm = float((torch.cat(grads) ** 2).sum().sqrt())


class Module(LanguageModelModule):
    extra = 0.0

    def training_step(self, batch, batch_idx) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + self.extra


def fit(folder: Path, *callbacks: L.Callback, interval_minutes: float = 0) -> L.Trainer:
    """Two epochs of eight windows, with a checkpoint before each."""
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, WORDS, 162, dtype=np.int32)
    corpus = Corpus("text", Vocabulary(tuple("abcdefghi")), ids, ids[:40], ids[40:80])
    datamodule = LanguageModelDataModule(corpus, batch_size=2, bptt=10, evaluation_columns=1)
    model = LanguageModel(Embedding(WORDS, 4), LSTM(4, 4), Softmax(4, WORDS))
    module = Module(model, lambda parameters: torch.optim.SGD(parameters, lr=LR))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[*callbacks, Checkpoints(folder, interval_minutes=interval_minutes)],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    )
    trainer.fit(module, datamodule=datamodule)
    return trainer


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        fit(*args, **options)
    message = str(error.value)
    assert "\n" not in message
    assert "Set optimizer.lr or trainer.gradient_clip_val lower" in message
    assert message.endswith("The last checkpoint is from before that.")
    return message


def test_before_the_first_checkpoint_there_is_none_to_go_on_from(tmp_path: Path):
    with pytest.raises(UserError, match=r"^The loss of step 1 is nan .* None was saved yet\.$"):
        fit(tmp_path, FiniteLoss(), Break("loss", 1, math.nan))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [3, NUM_WINDOWS, NUM_WINDOWS + 1])
def test_the_run_stops_at_the_step(tmp_path: Path, step: int, value: float):
    breaks = Break("loss", step, value)
    message = refusal(tmp_path, FiniteLoss(), breaks)
    # adding a constant leaves the gradient as it is
    assert message.startswith(
        f"The loss of step {step} is {value} (epoch {(step - 1) // NUM_WINDOWS}, lr 0.125, window "
        f"of {breaks.num_steps_of_window} steps, gradient norm {breaks.norm:g} after clipping)"
    )
    assert math.isfinite(breaks.norm)
    last = read_checkpoint(tmp_path / "last.ckpt")
    assert last["global_step"] == step - 1


def test_a_gradient_that_is_not_finite_is_shown(tmp_path: Path):
    expected = r"^The loss of step 5 is nan .*gradient norm nan after clipping.* None was saved yet"
    with pytest.raises(UserError, match=expected):
        fit(tmp_path, FiniteLoss(), Break("weight", 5), interval_minutes=10)


@pytest.mark.parametrize("step", [5, NUM_WINDOWS])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, step: int):
    """Neither during an epoch nor at its end, when the loss of their step was finite."""

    class After(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if trainer.global_step == step:
                with torch.no_grad():
                    pl_module.model.embedding.weight[3, 1] = math.nan

    message = refusal(tmp_path, FiniteLoss(), After())
    assert message.startswith(f"A weight is nan or infinite after step {step} (epoch 0")
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == step - 1


def test_a_run_whose_losses_are_finite_is_let_alone(tmp_path: Path):
    trainer = fit(tmp_path, FiniteLoss(), Break("loss", 3, 1e30))
    assert trainer.global_step == 2 * NUM_WINDOWS


class Elsewhere:
    """A loss that says it is on a GPU, and that cannot be read."""

    def __init__(self, value: float) -> None:
        self._value = torch.tensor(value)
        self.device = torch.device("cuda")

    def detach(self) -> "Elsewhere":
        return self

    def isfinite(self) -> torch.Tensor:
        return self._value.isfinite()


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be made on the GPU is made on the CPU."""
    full = torch.full
    monkeypatch.setattr(finite_loss.torch, "full", lambda size, value, device: full(size, value))


class BareTrainer:
    """What the callback uses of a trainer."""

    def __init__(self) -> None:
        self.global_step = self.current_epoch = 0
        self.checkpoint_callback = None
        self.optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)]


def step_through(callback: FiniteLoss, losses: list[float], trainer: Any) -> None:
    module: Any = torch.nn.Linear(1, 1)
    batch: Any = type("Window", (), {"tokens": torch.zeros(7, 2)})
    for loss in losses:
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, {"loss": Elsewhere(loss)}, batch, 0)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("bad", [1, 20, 50, 51])
def test_on_a_gpu_the_first_bad_step_is_told_every_50_steps(bad: int):
    callback, trainer = FiniteLoss(), BareTrainer()
    losses = [1.0] * (bad - 1) + [math.inf, 1.0] + [math.nan] * 100
    read_at = 50 if bad <= 50 else 100
    step_through(callback, losses[: read_at - 1], trainer)
    with pytest.raises(UserError, match=rf"^The loss of step {bad} is nan or infinite .* of 7 "):
        step_through(callback, losses[read_at - 1 : read_at], trainer)


@pytest.mark.usefixtures("on_gpu")
def test_on_a_gpu_the_loss_is_read_before_a_checkpoint():
    callback, trainer = FiniteLoss(), BareTrainer()
    module: Any = torch.nn.Linear(1, 1)
    step_through(callback, [1.0, 2.0], trainer)
    callback.on_save_checkpoint(trainer, module, {})
    step_through(callback, [math.nan, 1.0], trainer)
    with pytest.raises(UserError, match=r"^The loss of step 3 is nan or infinite"):
        callback.on_save_checkpoint(trainer, module, {})
