"""lmbench's AWD-LSTM training against the published one, written out plainly.

The reference below follows Merity et al. 2017 and the behaviour of salesforce/awd-lstm-lm's
main.py, in float64, and shares no code with the package: the LSTM is a loop over time steps, each
dropout a mask multiplied in, the optimizers a few lines of arithmetic. Both sides get the same
initial weights and the same dropout masks; everything else each computes for itself.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from small import config_of
from torch import Tensor
from torch.nn import functional
from trainings import weights_of

from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.data.corpus import Corpus
from lmbench.data.vocabulary import Vocabulary
from lmbench.instantiate import training as build
from lmbench.instantiate.model import build_model
from lmbench.model.dropout import WeightDropout

WORDS, EMBEDDING, HIDDEN, LAYERS = 11, 5, 7, 3
COLUMNS, BPTT, EPOCHS, SEED = 4, 12, 7, 3
LR, DECAY, CLIP, INTERVAL = 6.0, 1e-3, 0.25, 1
AR_ALPHA, TAR_BETA = 2.0, 1.0
P_EMBEDDING, P_INPUT, P_HIDDEN, P_OUTPUT, P_WEIGHT = 0.05, 0.1, 0.12, 0.15, 0.2
TOLERANCE = 1e-12

Weights = dict[str, Tensor]
State = list[tuple[Tensor, Tensor]]


class Step(NamedTuple):
    """One training step."""

    nll: float
    loss: float
    lr: float
    gradients: Weights  # before clipping
    weights: Weights  # afterwards


class Epoch(NamedTuple):
    """The weights that validation saw, and its result."""

    weights: Weights
    nll: float


class Run(NamedTuple):
    steps: list[Step]
    epochs: list[Epoch]
    triggered_epoch: int | None
    test_nll: float


def mask(step: int, place: int, shape: tuple[int, ...], p: float) -> Tensor:
    """The dropout mask at a place of a step, counted in the order of the forward pass."""
    kept = np.random.default_rng((SEED, step, place)).random(shape) >= p
    return torch.from_numpy(kept / (1.0 - p))


def make_corpus() -> Corpus:
    """Words that mostly follow one another, so that there is something to learn."""
    generator = np.random.default_rng(SEED)

    def stream(length: int) -> np.ndarray:
        ids = [0]
        while len(ids) < length:
            follows = generator.random() < 0.8
            ids.append((3 * ids[-1] + 1) % WORDS if follows else int(generator.integers(WORDS)))
        return np.array(ids, dtype=np.int32)

    vocabulary = Vocabulary(tuple(f"w{index}" for index in range(WORDS)))
    return Corpus("text", vocabulary, stream(4 * 130 + 2), stream(1503), stream(161))


# The reference ------------------------------------------------------------------------------------


def lstm(input: Tensor, hidden: Tensor, cell: Tensor, layer: Weights) -> tuple[Tensor, ...]:
    outputs = []
    for x in input:
        gates = (
            x @ layer["weight_ih"].T
            + layer["bias_ih"]
            + hidden @ layer["weight_hh"].T
            + layer["bias_hh"]
        )
        i, f, g, o = gates.split(hidden.shape[1], dim=1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        outputs.append(hidden)
    return torch.stack(outputs), hidden, cell


def zero_state(columns: int) -> State:
    sizes = [HIDDEN] * (LAYERS - 1) + [EMBEDDING]
    return [(torch.zeros(columns, size), torch.zeros(columns, size)) for size in sizes]


def read(weights: Weights, tokens: Tensor, targets: Tensor, state: State, step: int | None):
    """Mean nats, the whole loss and the next state; masks are used if ``step`` is given."""
    places = iter(range(99))

    def drop(value: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
        return value if step is None else value * mask(step, next(places), shape, p)

    columns = tokens.shape[1]
    embedding = weights["embedding.weight"]
    x = drop(embedding, (WORDS, 1), P_EMBEDDING)[tokens]
    x = drop(x, (1, columns, EMBEDDING), P_INPUT)
    raw, next_state = x, []
    for index in range(LAYERS):
        if index > 0:
            x = drop(raw, (1, *raw.shape[1:]), P_HIDDEN)
        prefix = f"core.layers.{index}."
        layer = {
            name.removeprefix(prefix).removesuffix("_l0"): value
            for name, value in weights.items()
            if name.startswith(prefix)
        }
        recurrent = layer["weight_hh"]
        layer["weight_hh"] = drop(recurrent, tuple(recurrent.shape), P_WEIGHT)
        raw, hidden, cell = lstm(x, *state[index], layer)
        next_state.append((hidden.detach(), cell.detach()))
    dropped = drop(raw, (1, *raw.shape[1:]), P_OUTPUT)
    logits = dropped @ embedding.T + weights["head.bias"]
    right = logits.gather(2, targets[..., None])[..., 0]
    nll = (logits.exp().sum(2).log() - right).mean()
    loss = nll + AR_ALPHA * dropped.pow(2).mean() + TAR_BETA * (raw[1:] - raw[:-1]).pow(2).mean()
    return nll, loss, next_state


def fold(ids: np.ndarray, columns: int) -> Tensor:
    rows = len(ids) // columns
    return torch.from_numpy(ids[: rows * columns].astype(np.int64)).view(columns, rows).t()


def evaluate(weights: Weights, ids: np.ndarray, columns: int) -> float:
    """As published: the sum over rows is divided by their number, including the first one."""
    data, state, total = fold(ids, columns), zero_state(columns), 0.0
    for start in range(0, len(data) - 1, 70):
        targets = data[start + 1 : start + 71]
        nll, _, state = read(weights, data[start : start + len(targets)], targets, state, None)
        total += len(targets) * nll.item()
    return total / len(data)


def windows(data: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    generator = np.random.default_rng((SEED, epoch))
    start = 0
    while start < len(data) - 2:
        base = BPTT if generator.random() < 0.95 else BPTT / 2
        length = max(5, int(generator.normal(base, 5)))
        targets = data[start + 1 : start + 1 + length]
        yield data[start : start + len(targets)], targets, length
        start += length


def train_by_hand(weights: Weights, corpus: Corpus, *, lr_is_late: bool) -> Run:
    data = fold(corpus.train, COLUMNS)
    steps: list[Step] = []
    epochs: list[Epoch] = []
    averages: Weights | None = None
    triggered_epoch, num_averaged_steps, eta = None, 0, math.nan
    history: list[float] = []
    for epoch in range(EPOCHS):
        state = zero_state(COLUMNS)
        for tokens, targets, length in windows(data, epoch):
            leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
            nll, loss, state = read(leaves, tokens, targets, state, len(steps))
            loss.backward()
            gradients = {name: leaf.grad for name, leaf in leaves.items()}
            norm = math.sqrt(sum(g.pow(2).sum().item() for g in gradients.values()))
            factor = min(1.0, CLIP / (norm + 1e-6))
            lr = LR * length / BPTT
            if averages is None or num_averaged_steps == 0 or not lr_is_late:
                eta = lr  # otherwise that of the step before
            weights = {
                name: value - eta * (factor * gradients[name] + DECAY * value)
                for name, value in weights.items()
            }
            eta = lr
            if averages is not None:
                num_averaged_steps += 1
                share = 1.0 / max(1, num_averaged_steps - 1)
                averages = {
                    name: average + share * (weights[name] - average)
                    for name, average in averages.items()
                }
            steps.append(Step(nll.item(), loss.item(), lr, gradients, weights))
        scored = weights if averages is None else averages
        nll = evaluate(scored, corpus.valid, 10)
        epochs.append(Epoch(scored, nll))
        if averages is None:
            if len(history) > INTERVAL and nll > min(history[:-INTERVAL]):
                averages, triggered_epoch = weights, epoch
            history.append(nll)
    best = min(epochs, key=lambda one: one.nll)
    return Run(steps, epochs, triggered_epoch, evaluate(best.weights, corpus.test, 1))


# lmbench ------------------------------------------------------------------------------------------


class Recorder(L.Callback):
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.epochs: list[Epoch] = []
        self.place = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.step, self.place = trainer.global_step, 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        named = pl_module.model.named_parameters()
        self.gradients = {name: value.grad.clone() for name, value in named}
        self.lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        nll = trainer.callback_metrics["train/nll"].item()
        weights, loss = weights_of(pl_module), outputs["loss"].item()
        self.steps.append(Step(nll, loss, self.lr, self.gradients, weights))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *_) -> None:
        self.seen = weights_of(pl_module)

    def on_validation_end(self, trainer, pl_module) -> None:
        self.epochs.append(Epoch(self.seen, pl_module.scores["val"].nll))

    def dropout(self, input: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
        """Replaces torch.nn.functional.dropout, and our own for recurrent weights."""
        assert training
        self.place += 1
        return input * mask(self.step, self.place - 1, tuple(input.shape), p)


def make_config(optimizer: str) -> dict:
    return config_of(
        "model=awd_lstm",
        f"optimizer={optimizer}",
        f"seed={SEED}",
        f"model.embedding_size={EMBEDDING}",
        f"model.embedding_dropout={P_EMBEDDING}",
        f"model.core.hidden_size={HIDDEN}",
        f"model.core.input_dropout={P_INPUT}",
        f"model.core.hidden_dropout={P_HIDDEN}",
        f"model.core.output_dropout={P_OUTPUT}",
        f"model.core.weight_dropout={P_WEIGHT}",
        f"loss.ar_alpha={AR_ALPHA}",
        f"loss.tar_beta={TAR_BETA}",
        f"optimizer.lr={LR}",
        f"optimizer.weight_decay={DECAY}",
        f"batching.batch_size={COLUMNS}",
        f"batching.bptt={BPTT}",
        f"callbacks.nt_asgd.non_monotone_interval={INTERVAL}",
        "evaluation.protocol=awd_lstm_lm",
        "trainer.accelerator=cpu",
        f"trainer.max_epochs={EPOCHS}",
        f"trainer.gradient_clip_val={CLIP}",
        "trainer.log_every_n_steps=1",
    )


def train_by_lmbench(config: dict, corpus: Corpus, run_dir: Path) -> tuple[Weights, Run]:
    """The initial weights, and the run that began with them."""
    build.seed_everything(config)
    datamodule = build.datamodule(config, corpus)
    module = build.module(config, build_model(config["model"], WORDS))
    trainer = build.trainer(config, run_dir)
    recorder = Recorder()
    (nt_asgd,) = (c for c in trainer.callbacks if isinstance(c, NTASGD))
    trainer.callbacks.insert(0, recorder)
    start = weights_of(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "dropout", recorder.dropout)
        patch.setattr(
            WeightDropout,
            "forward",
            lambda self, weight: recorder.dropout(weight, self.p) if self.training else weight,
        )
        trainer.fit(module, datamodule=datamodule)
    best = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)
    module.load_state_dict(best["state_dict"])
    trainer.test(module, datamodule=datamodule, verbose=False)
    test_nll = module.scores["test"].nll
    return start, Run(recorder.steps, recorder.epochs, nt_asgd.triggered_epoch, test_nll)


# Comparison ---------------------------------------------------------------------------------------


def difference(ours: Weights, reference: Weights) -> float:
    """Largest relative difference of any weight, by norms: |a − b| / |b|."""
    assert ours.keys() == reference.keys()
    return max(
        ((ours[name] - value).norm() / value.norm()).item() for name, value in reference.items()
    )


def relative(ours: float, reference: float) -> float:
    return abs(ours - reference) / abs(reference)


@pytest.fixture(scope="module", autouse=True)
def _float64() -> Iterator[None]:
    """Also for torch.optim.ASGD, which keeps its rates in the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


Train = Callable[[str], tuple[Weights, Run]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains with an optimizer, once."""
    folder = tmp_path_factory.mktemp("runs")
    return cache(
        lambda optimizer: train_by_lmbench(
            make_config(optimizer), make_corpus(), folder / optimizer
        )
    )


@pytest.mark.parametrize("optimizer", ["asgd_torch", pytest.param("asgd", marks=pytest.mark.slow)])
def test_training_is_the_published_one(train: Train, optimizer: str):
    """With optimizer=asgd, a changed lr acts one step earlier than in the published one."""
    start, ours = train(optimizer)
    reference = train_by_hand(start, make_corpus(), lr_is_late=optimizer == "asgd_torch")

    assert reference.triggered_epoch is not None
    assert 1 < reference.triggered_epoch < EPOCHS - 2
    assert ours.triggered_epoch == reference.triggered_epoch
    assert len(ours.steps) == len(reference.steps)
    assert len(ours.epochs) == len(reference.epochs) == EPOCHS
    steps = list(zip(ours.steps, reference.steps, strict=True))
    epochs = list(zip(ours.epochs, reference.epochs, strict=True))
    worst = {
        "train/nll": max(relative(a.nll, b.nll) for a, b in steps),
        "loss with AR and TAR": max(relative(a.loss, b.loss) for a, b in steps),
        "learning rate": max(relative(a.lr, b.lr) for a, b in steps),
        "gradients": max(difference(a.gradients, b.gradients) for a, b in steps),
        "weights": max(difference(a.weights, b.weights) for a, b in steps),
        "weights of validation": max(difference(a.weights, b.weights) for a, b in epochs),
        "val/ppl": max(relative(math.exp(a.nll), math.exp(b.nll)) for a, b in epochs),
        "test/ppl": relative(math.exp(ours.test_nll), math.exp(reference.test_nll)),
    }
    print(f"\noptimizer={optimizer}, {len(steps)} steps in {EPOCHS} epochs,", end=" ")
    print(f"switch after epoch {ours.triggered_epoch}; largest relative differences:")
    print("\n".join(f"  {name:<22}{value:.1e}" for name, value in worst.items()))
    assert {name: value for name, value in worst.items() if not value < TOLERANCE} == {}


@pytest.mark.slow
def test_the_comparison_covers_what_it_should(train: Train):
    """Clipping that acts at times, lengths that vary, averages that win and are tested."""
    _, run = train("asgd_torch")
    norms = [math.sqrt(sum(g.pow(2).sum() for g in one.gradients.values())) for one in run.steps]
    assert min(norms) < CLIP < max(norms)
    assert len({one.lr for one in run.steps}) > 5
    scores = [one.nll for one in run.epochs]
    assert run.triggered_epoch is not None
    assert scores.index(min(scores)) > run.triggered_epoch
    last, iterate = run.epochs[-1].weights, run.steps[-1].weights
    assert difference(last, iterate) > 1e-3
    _, other = train("asgd")
    assert difference(other.epochs[-1].weights, last) > 1e-3
