"""Shape letters: T time steps, B columns, H hidden, V vocabulary."""

import itertools
import math
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.testing import assert_close

from lmbench.data.batching import TrainingWindows
from lmbench.data.columns import columns_for_training
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.model import AWDLSTM, Embedding, LanguageModel, Softmax
from lmbench.module import LanguageModelModule
from lmbench.optim import PhasedLR

WORDS = 11
BPTT = 8
LR = 0.5
DECAY = 0.1
CLIP = 0.4
AR, TAR = 2.0, 1.0
OUTPUT_SCALE = 1.5

Layers = list[tuple[Tensor, Tensor]]


class Scaled(nn.Module):
    """In the place of the output dropout: tells dropped from raw outputs, without chance."""

    def forward(self, input: Tensor) -> Tensor:
        return OUTPUT_SCALE * input


class RecordingSGD(torch.optim.SGD):
    """Notes the learning rate that each step is taken with."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.lrs: list[float] = []

    def step(self, closure=None):
        self.lrs.append(self.param_groups[0]["lr"])
        return super().step(closure)


class Recorder(L.Callback):
    """What happened, step by step and validation by validation."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.num_scored: list[int] = []
        self.lrs_between_steps: list[float] = []
        self.validated_at: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))
        self.num_scored.append(batch.num_scored)
        self.lrs_between_steps.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_end(self, trainer, pl_module) -> None:
        self.validated_at.append(trainer.global_step)


class Rows(Logger):
    """Keeps what is logged."""

    name, version = "rows", ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs) -> None:
        pass


def make_datamodule(**options) -> LanguageModelDataModule:
    generator = np.random.default_rng(0)
    train, valid, test = (
        generator.integers(0, WORDS, length, dtype=np.int32) for length in (211, 64, 49)
    )
    vocabulary = Vocabulary(tuple(f"w{index}" for index in range(WORDS)))
    defaults = {"batch_size": 3, "bptt": BPTT, "variable_windows": True}
    defaults |= {"evaluation_columns": 1, "evaluation_window": 10}
    corpus = Corpus("text", vocabulary, train, valid, test)
    return LanguageModelDataModule(corpus, **(defaults | options))


def make_module(scheduler=None, *, decay: float = 0.0, **penalties) -> LanguageModelModule:
    torch.manual_seed(0)
    core = AWDLSTM(
        5, 6, 5, 2, input_dropout=0.0, hidden_dropout=0.0, output_dropout=0.0, weight_dropout=0.0
    )
    core.output_dropout = Scaled()  # pyright: ignore
    model = LanguageModel(Embedding(WORDS, 5), core, Softmax(5, WORDS), tied=True)
    for parameter in model.parameters():  # sharper than a real start, so that errors show
        nn.init.uniform_(parameter, -0.7, 0.7)
    return LanguageModelModule(
        model,
        lambda parameters: RecordingSGD(parameters, lr=LR, weight_decay=decay),
        scheduler,
        **penalties,
    ).double()


def make_trainer(**options) -> L.Trainer:
    defaults = {
        "max_epochs": 2,
        "logger": False,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
    }
    return L.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        **(defaults | options),
    )


def weights_of(module: LanguageModelModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.model.named_parameters()}


def read(weights: dict[str, Tensor], tokens: Tensor, state: Layers) -> tuple[Tensor, Tensor]:
    """The network from its formulas: log-probabilities (T, B, V) and raw outputs (T, B, H).

    ``state`` is brought up to date in place.
    """
    outputs = []
    for embedded in weights["embedding.weight"][tokens]:
        below = embedded
        for index, (hidden, cell) in enumerate(state):
            layer = {
                name: weights[f"core.layers.{index}.{name}_l0"]
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            gates = below @ layer["weight_ih"].T + layer["bias_ih"]
            gates = gates + hidden @ layer["weight_hh"].T + layer["bias_hh"]
            enter, forget, candidate, leave = gates.chunk(4, dim=-1)
            next_cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
            below = leave.sigmoid() * next_cell.tanh()
            state[index] = (below, next_cell)
        outputs.append(below)
    raw = torch.stack(outputs)
    logits = OUTPUT_SCALE * raw @ weights["embedding.weight"].T + weights["head.bias"]
    return logits - logits.exp().sum(-1, keepdim=True).log(), raw


def zero_state(columns: int) -> Layers:
    sizes = (6, 5)
    return [
        (torch.zeros(columns, size).double(), torch.zeros(columns, size).double()) for size in sizes
    ]


def nats_of(log_probs: Tensor, targets: Tensor) -> Tensor:
    return -log_probs.gather(-1, targets[..., None]).squeeze(-1)


def stream_nats(weights: dict[str, Tensor], ids: np.ndarray) -> Tensor:
    """Nats of each token but the first of a stream that is read at once, in one column."""
    tokens = torch.from_numpy(ids.astype(np.int64))[:, None]
    log_probs, _ = read(weights, tokens[:-1], zero_state(1))
    return nats_of(log_probs, tokens[1:])[:, 0]


def drawn_lengths(datamodule: LanguageModelDataModule, epoch: int) -> list[int]:
    columns = columns_for_training(datamodule.corpus.train, 3)
    windows = TrainingWindows(columns, BPTT, variable=True, seed=0, epoch=epoch)
    return [round(window.lr_scale * BPTT) for window in windows]


def train_by_hand(
    weights: dict[str, Tensor], ids: np.ndarray, epochs: list[list[int]]
) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """Plain SGD over windows of the given lengths; weights, losses and gradient norms."""
    columns = torch.from_numpy(ids[: len(ids) // 3 * 3].astype(np.int64)).view(3, -1).T
    losses, norms = [], []
    for lengths in epochs:
        state, start = zero_state(3), 0
        for length in lengths:
            leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
            state = [(hidden.detach(), cell.detach()) for hidden, cell in state]
            end = min(start + length, len(columns) - 1)
            log_probs, raw = read(leaves, columns[start:end], state)
            loss = nats_of(log_probs, columns[start + 1 : end + 1]).mean()
            loss = loss + AR * ((OUTPUT_SCALE * raw) ** 2).mean()
            loss = loss + TAR * ((raw[1:] - raw[:-1]) ** 2).mean()
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
            for (name, value), gradient in zip(weights.items(), gradients, strict=True):
                clipped = gradient * min(1.0, CLIP / (norm + 1e-6))
                weights[name] = value - LR * length / BPTT * (clipped + DECAY * value)
            losses.append(loss.item())
            norms.append(norm)
            start = end
    return weights, losses, norms


def test_a_training_is_the_same_as_by_hand():
    """Windows, carried state, penalties, clipping, decay after it and scaled learning rates."""
    datamodule = make_datamodule()
    module = make_module(decay=DECAY, ar_alpha=AR, tar_beta=TAR)
    lengths = [drawn_lengths(datamodule, epoch) for epoch in range(2)]
    before = weights_of(module)
    recorder = Recorder()
    make_trainer(callbacks=[recorder], gradient_clip_val=CLIP).fit(module, datamodule=datamodule)

    expected, losses, norms = train_by_hand(before, datamodule.corpus.train, lengths)
    assert min(norms) < CLIP < max(norms)
    assert recorder.losses == pytest.approx(losses, rel=1e-10)
    assert_close(weights_of(module), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fused_optimizer_is_clipped_like_any_other(precision: str, algorithm: str):
    weights = {}
    for name, clip, fused in (("fused", 0.01, True), ("not", 0.01, False), ("free", None, True)):
        module = make_module().float()
        optimizer = torch.optim.SGD(module.parameters(), lr=LR, fused=fused)
        module.configure_optimizers = lambda optimizer=optimizer: optimizer
        make_trainer(
            precision=precision, gradient_clip_val=clip, gradient_clip_algorithm=algorithm
        ).fit(module, datamodule=make_datamodule())
        weights[name] = torch.cat([weight.flatten() for weight in weights_of(module).values()])
    assert_close(weights["fused"], weights["not"], rtol=1e-6, atol=1e-6)
    assert (weights["fused"] - weights["free"]).norm() > 0.1


@pytest.mark.parametrize(("algorithm", "order"), [("norm", 2.0), ("value", math.inf)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_clipped_ends_at_the_bound(precision: str, algorithm: str, order: float):
    sizes: list[tuple[float, float]] = []

    class NotesGradients(L.Callback):
        def note(self, trainer, pl_module, *_) -> None:
            gradients = torch.cat([p.grad.flatten() for p in pl_module.model.parameters()])
            sizes.append((gradients.norm().item(), gradients.norm(p=order).item()))

        on_before_optimizer_step = on_train_batch_end = note

    make_trainer(
        max_steps=1,
        precision=precision,
        gradient_clip_val=0.01,
        gradient_clip_algorithm=algorithm,
        callbacks=[NotesGradients()],
    ).fit(make_module().float(), datamodule=make_datamodule())
    (_, before), (norm, after) = sizes
    assert before > 0.02
    assert after == pytest.approx(0.01, rel=1e-3)  # the bound is reached to 1e-6 of the norm
    assert algorithm == "norm" or norm > 0.02


def test_each_step_scales_the_learning_rate_by_the_drawn_length_alone():
    datamodule = make_datamodule()
    module, recorder = make_module(), Recorder()
    trainer = make_trainer(callbacks=[recorder])
    trainer.fit(module, datamodule=datamodule)
    lengths = [drawn_lengths(datamodule, epoch) for epoch in range(2)]
    # 211 tokens in three columns are 69 targets each: both last windows are cut short.
    assert all(sum(drawn) > 69 for drawn in lengths)
    expected = [LR * length / BPTT for length in itertools.chain(*lengths)]
    assert trainer.optimizers[0].lrs == pytest.approx(expected, rel=1e-14)
    assert len(set(expected)) > 3
    assert recorder.lrs_between_steps == [LR] * len(expected)


def test_state_is_carried_without_its_graph_and_each_stage_has_its_own():
    module = make_module()
    calls: dict[str, list] = {"train": [], "val": []}

    def note(_, arguments, output) -> None:
        stage = "train" if module.training else "val"
        calls[stage].append((module.trainer.current_epoch, arguments[1], output.state))

    module.model.register_forward_hook(note)
    make_trainer(val_check_interval=3).fit(module, datamodule=make_datamodule())

    starts = {"train": 0, "val": 0}
    for stage, noted in calls.items():
        for (epoch_before, _, left), (epoch, taken, _) in itertools.pairwise(noted):
            if taken is None:
                starts[stage] += 1
                assert stage == "val" or epoch == epoch_before + 1
            else:
                assert all(not part.requires_grad for layer in taken for part in layer)
                assert_close(taken, left, rtol=0, atol=0)
        assert noted[0][1] is None
    validations = len(calls["val"]) / math.ceil(63 / 10)
    assert validations > 2
    assert starts == {"train": 1, "val": validations - 1}
    assert all(
        not part.requires_grad for _, _, state in calls["val"] for layer in state for part in layer
    )


def test_validation_within_an_epoch_does_not_touch_training():
    weights, losses = [], []
    for options in ({"val_check_interval": 2}, {"limit_val_batches": 0}):
        module, recorder = make_module(ar_alpha=AR, tar_beta=TAR), Recorder()
        make_trainer(callbacks=[recorder], **options).fit(module, datamodule=make_datamodule())
        weights.append(weights_of(module))
        losses.append(recorder.losses)
        assert len(recorder.validated_at) == (
            0 if "limit_val_batches" in options else len(recorder.losses) // 2
        )
    assert losses[0] == losses[1]
    assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_processes_draw_masks_of_their_own(monkeypatch: pytest.MonkeyPatch):
    """They are seeded alike, so that they begin with the same weights; the first one stays so."""
    module = make_module()
    torch.manual_seed(3)
    drawn = [torch.rand(5)]
    for rank in range(4):
        monkeypatch.setattr(LanguageModelModule, "global_rank", rank)
        torch.manual_seed(3)
        module.on_fit_start()
        drawn.append(torch.rand(5))
    assert torch.equal(drawn[0], drawn[1])
    assert len(torch.stack(drawn).unique(dim=0)) == 4


def test_a_schedule_over_time_goes_on_with_a_limit_of_time_alone():
    def loads(**options) -> None:
        module = make_module()
        module.trainer = make_trainer(max_epochs=-1, **options)
        module.trainer.datamodule = make_datamodule()
        module.on_load_checkpoint({"lr_schedulers": [{"total_steps": None, "progress": 0.25}]})

    loads(callbacks=[Timer("00:00:10:00")])
    with pytest.raises(UserError, match=r"for a limit of time.*Leave trainer\.max_time as it was"):
        loads()


def test_a_fused_optimizer_that_unscales_itself_is_not_clipped(monkeypatch: pytest.MonkeyPatch):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer = SimpleNamespace(
        precision_plugin=plugin, gradient_clip_val=None, gradient_clip_algorithm=None
    )
    monkeypatch.setattr(LanguageModelModule, "trainer", trainer)
    module = make_module().float()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, fused=True)
    module.configure_gradient_clipping(optimizer, None)
    with pytest.raises(UserError, match=r"16-mixed.*Set trainer\.precision=bf16-mixed"):
        module.configure_gradient_clipping(optimizer, 0.25)


def test_one_column_scores_the_whole_stream_in_uneven_windows():
    datamodule, module = make_datamodule(), make_module()
    trainer = make_trainer()
    (logged,) = trainer.validate(module, datamodule=datamodule, verbose=False)
    nats = stream_nats(weights_of(module), datamodule.corpus.valid)
    assert len(nats) == 63  # windows of 10: the last one holds 3
    assert module.scores["val"] == (pytest.approx(nats.sum().item(), rel=1e-12), 63, 0)
    assert logged["val/nll"] == pytest.approx(nats.mean().item(), rel=1e-6)
    assert logged["val/ppl"] == pytest.approx(nats.mean().exp().item(), rel=1e-6)
    means = torch.stack([window.mean() for window in nats.split(10)])
    assert logged["val/nll"] != pytest.approx(means.mean().item(), rel=1e-4)
    assert logged["val/ppl"] != pytest.approx(means.exp().mean().item(), rel=1e-4)

    (logged,) = trainer.test(module, datamodule=datamodule, verbose=False)
    nats = stream_nats(weights_of(module), datamodule.corpus.test)
    assert module.scores["test"] == (pytest.approx(nats.sum().item(), rel=1e-12), 48, 0)
    assert logged["test/ppl"] == pytest.approx(nats.mean().exp().item(), rel=1e-6)


def test_columns_with_burn_in_score_each_target_once_from_a_warm_state():
    """63 targets in 3 columns of 25: the first scores 25; the others read 6 first and score 19."""
    datamodule, module = make_datamodule(evaluation_columns=3, burn_in=6), make_module()
    make_trainer().validate(module, datamodule=datamodule, verbose=False)
    weights, ids = weights_of(module), datamodule.corpus.valid
    nats = torch.cat(
        [
            stream_nats(weights, ids[:26]),
            stream_nats(weights, ids[19:45])[6:],
            stream_nats(weights, ids[38:])[6:],
        ]
    )
    assert len(nats) == 63
    assert module.scores["val"] == (pytest.approx(nats.sum().item(), rel=1e-12), 63, 0)
    assert nats.sum().item() != pytest.approx(stream_nats(weights, ids).sum().item(), rel=1e-6)


def test_the_published_protocol_divides_the_nats_within_columns_by_the_tokens():
    """64 tokens are 10 columns of 6 with 5 targets each; the last 4 tokens are left out."""
    datamodule = make_datamodule(evaluation_protocol="published", evaluation_window=2)
    module, trainer = make_module(), make_trainer()
    (logged,) = trainer.validate(module, datamodule=datamodule, verbose=False)
    weights, ids = weights_of(module), datamodule.corpus.valid
    columns = [stream_nats(weights, ids[start : start + 6]) for start in range(0, 60, 6)]
    nats = torch.cat(columns).sum().item()
    assert module.scores["val"] == (pytest.approx(nats, rel=1e-12), 50, 10)
    assert module.scores["val"].nll == pytest.approx(nats / 60, rel=1e-12)
    assert logged["val/nll"] == pytest.approx(nats / 60, rel=1e-6)
    assert logged["val/ppl"] == pytest.approx(math.exp(nats / 60), rel=1e-6)

    trainer.test(module, datamodule=datamodule, verbose=False)
    nats = stream_nats(weights, datamodule.corpus.test).sum().item()
    assert module.scores["test"].nll == pytest.approx(nats / 49, rel=1e-12)


def test_train_nll_is_the_mean_over_the_tokens_since_the_last_log():
    module, recorder, rows = make_module(), Recorder(), Rows()
    trainer = make_trainer(callbacks=[recorder], logger=rows, log_every_n_steps=3)
    trainer.fit(module, datamodule=make_datamodule())
    logged = [row for _, row in rows.rows if "train/nll" in row]
    assert len(logged) == len(recorder.losses) // 3
    for index, row in enumerate(logged):
        part = slice(3 * index, 3 * index + 3)
        expected = np.average(recorder.losses[part], weights=recorder.num_scored[part])
        assert row["train/nll"] == pytest.approx(expected, rel=1e-6)
        assert row["train/ppl"] == pytest.approx(math.exp(expected), rel=1e-6)
        assert row["lr"] == LR  # before the scaling by a window's length
        assert expected != pytest.approx(np.mean(recorder.losses[part]), rel=1e-6)


def test_an_interval_of_zero_logs_no_training_steps():
    rows = Rows()
    make_trainer(logger=rows, log_every_n_steps=0).fit(make_module(), datamodule=make_datamodule())
    assert [row for _, row in rows.rows if "val/nll" in row]
    assert not [row for _, row in rows.rows if "train/nll" in row or "lr" in row]


@pytest.mark.parametrize(
    ("options", "validated_at"),
    [
        ({"max_epochs": 1}, [5]),
        ({"max_epochs": 2}, [5, 10]),
        ({"max_steps": 5}, [5]),
        ({"max_steps": 10}, [5, 10]),
        ({"max_steps": 3}, [3]),
        ({"max_steps": 8}, [5, 8]),
        ({"max_epochs": -1, "max_steps": 7}, [5, 7]),
        ({"max_steps": 8, "val_check_interval": 2}, [2, 4, 7, 8]),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [10, 15]),
        ({"max_epochs": 2, "check_val_every_n_epoch": 3}, [10]),
        ({"max_epochs": -1, "max_steps": 12, "check_val_every_n_epoch": 2}, [10, 12]),
        ({"max_steps": 3, "check_val_every_n_epoch": 2}, [3]),
        (
            {"max_epochs": 2, "check_val_every_n_epoch": None, "val_check_interval": 4},
            [4, 8, 10],
        ),
        ({"max_epochs": 2, "val_check_interval": 2}, [2, 4, 7, 9, 10]),
    ],
)
def test_the_end_of_training_is_validated_once(options: dict, validated_at: list[int]):
    recorder = Recorder()
    datamodule = make_datamodule(bptt=14, variable_windows=False)
    make_trainer(callbacks=[recorder], **options).fit(make_module(), datamodule=datamodule)
    assert recorder.validated_at == validated_at


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "max_steps": 13},
        {"max_epochs": 3, "max_steps": 1000},
        {"max_epochs": -1, "max_steps": 20},
        {"max_epochs": 3, "limit_train_batches": 4},
        {"max_epochs": 3, "limit_train_batches": 1000},
        {"max_epochs": 3, "limit_train_batches": 0.5},
        {"max_epochs": 3, "limit_train_batches": 1.0},
    ],
)
def test_a_schedule_ends_with_the_last_step(options: dict):
    def one_cycle(optimizer, total_steps: int) -> OneCycleLR:
        return OneCycleLR(
            optimizer, LR, total_steps, anneal_strategy="linear", cycle_momentum=False
        )

    module, rows = make_module(one_cycle), Rows()
    trainer = make_trainer(logger=rows, **options)
    trainer.fit(module, datamodule=make_datamodule())
    lrs = [row["lr"] for _, row in rows.rows if "lr" in row]
    num_steps = len(trainer.optimizers[0].lrs)
    assert len(lrs) == num_steps
    # Linearly from max / 25 up to max over 30 % of the steps, then linearly to max / 25e4.
    peak = 0.3 * num_steps - 1
    points = ([0, peak, num_steps - 1], [LR / 25, LR, LR / 25e4])
    assert lrs == pytest.approx(np.interp(range(num_steps), *points), rel=1e-5)


def plateau(optimizer, total_steps: int) -> ReduceLROnPlateau:
    optimizer.param_groups[0]["lr"] = 1.2
    return ReduceLROnPlateau(optimizer, factor=0.25, patience=0, threshold=0)


def test_a_plateau_lowers_the_rate_after_each_validation_that_is_no_better_than_the_best():
    module, rows = make_module(plateau), Rows()
    trainer = make_trainer(logger=rows, max_epochs=5)
    trainer.fit(module, datamodule=make_datamodule(variable_windows=False))
    nlls = [row["val/nll"] for _, row in rows.rows if "val/nll" in row]
    lr, best, expected, falls = 1.2, math.inf, [], []
    for nll in nlls:
        expected += [lr] * math.ceil(68 / BPTT)
        falls.append(not nll < best)
        best = min(best, nll)
        lr = lr / 4 if falls[-1] else lr
    assert trainer.optimizers[0].lrs == pytest.approx(expected, rel=1e-14)
    # The third is better than the second, but not than the best.
    assert falls == [False, True, True, False, False]
    assert nlls[2] < nlls[1]


def test_a_plateau_waits_for_the_epochs_that_validate():
    module, recorder = make_module(plateau), Recorder()
    trainer = make_trainer(callbacks=[recorder], max_epochs=6, check_val_every_n_epoch=3)
    trainer.fit(module, datamodule=make_datamodule(variable_windows=False))
    steps = math.ceil(68 / BPTT)
    assert recorder.validated_at == [3 * steps, 6 * steps]
    assert set(trainer.optimizers[0].lrs) == {1.2}


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_a_plateau_goes_on_after_a_resume(tmp_path):
    lrs = []
    for name, start in (("whole", None), ("resumed", tmp_path / "whole/epoch=1.ckpt")):
        folder = tmp_path / name
        checkpoints = ModelCheckpoint(
            folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=False
        )
        trainer = make_trainer(callbacks=[checkpoints], max_epochs=5, enable_checkpointing=True)
        datamodule = make_datamodule(variable_windows=False)
        trainer.fit(make_module(plateau), datamodule=datamodule, ckpt_path=start)
        lrs.append(trainer.optimizers[0].lrs)
    steps = math.ceil(68 / BPTT)
    assert len(lrs[1]) == 3 * steps
    assert lrs[1] == lrs[0][2 * steps :]
    assert lrs[1][0] < lrs[0][0]  # the second validation had lowered it


def test_a_model_that_has_diverged_is_not_scored_by_what_is_left_of_it():
    module = make_module()
    nn.init.constant_(module.model.head.bias, math.nan)
    (logged,) = make_trainer().validate(module, datamodule=make_datamodule(), verbose=False)
    assert math.isnan(logged["val/nll"])
    assert math.isnan(logged["val/ppl"])


@pytest.mark.parametrize(
    ("made_for", "options", "message"),
    [
        (None, {"max_epochs": 2}, "made for no given number of steps, .* would have [0-9]+ steps"),
        (12, {"max_epochs": -1}, "made for 12 steps, .* would have no given number of steps"),
        (12, {"max_epochs": 9}, "made for 12 steps, .* would have [0-9]+ steps"),
    ],
)
def test_a_schedule_that_would_not_end_with_the_run_is_refused(
    made_for: int | None, options: dict, message: str
):
    phases = [{"share": 1, "lr_factor": [1.0, 0.0]}]
    module = make_module(lambda optimizer, total_steps: PhasedLR(optimizer, made_for, phases))
    with pytest.raises(UserError, match=message):
        make_trainer(**options).fit(module, datamodule=make_datamodule())


def test_a_run_that_is_over_by_another_schedule_is_refused_before_it_is_tested(tmp_path):
    def phased(optimizer, total_steps: int | None) -> PhasedLR:
        return PhasedLR(optimizer, total_steps, [{"share": 1, "lr_factor": [1.0, 0.0]}])

    trainer = make_trainer()
    trainer.fit(make_module(phased), datamodule=make_datamodule())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    num_steps = trainer.global_step
    for options in ({"max_steps": 3}, {"max_epochs": 1}):  # which it has had
        with pytest.raises(UserError, match=f"made for {num_steps} steps, but .* would have"):
            make_trainer(**options).fit(
                make_module(phased),
                datamodule=make_datamodule(),
                ckpt_path=tmp_path / "last.ckpt",
                weights_only=False,
            )


def test_the_last_step_of_a_run_logs_nothing_that_an_earlier_one_has_left():
    rows = Rows()
    trainer = make_trainer(logger=rows, max_steps=10, log_every_n_steps=4)
    trainer.fit(make_module(), datamodule=make_datamodule(variable_windows=False))
    assert [step for step, row in rows.rows if "train/nll" in row] == [3, 7]
    assert [step for step, row in rows.rows if "lr" in row] == [3, 7]
    assert [step for step, row in rows.rows if "val/nll" in row] == [8, 9]
    assert "train/ppl" in trainer.callback_metrics


def test_what_processes_reduce_lies_on_their_device(monkeypatch: pytest.MonkeyPatch):
    """On a GPU, that is: NCCL reduces nothing else."""
    logged = {}
    trainer = SimpleNamespace(datamodule=SimpleNamespace(extra_divisor={"val": 0}))
    monkeypatch.setattr(LanguageModelModule, "device", torch.device("meta"))
    monkeypatch.setattr(LanguageModelModule, "trainer", trainer)
    monkeypatch.setattr(
        LanguageModelModule, "log", lambda _, name, value, **options: logged.update({name: value})
    )
    module = make_module()
    module._sums.update(torch.tensor(6.0), 2)
    module._log_scores("val")
    assert {name: value.device.type for name, value in logged.items()} == {
        "val/nll": "meta",
        "val/ppl": "meta",
    }
    assert module.scores["val"].nll == 3.0


class DropoutRates(L.Callback):
    """The probabilities in the model at the end of each step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.rates.append(rates_of(pl_module.model))


def rates_of(model: LanguageModel) -> list[float]:
    core = model.core
    dropouts = (core.input_dropout, core.hidden_dropout, core.output_dropout)
    return [model.embedding.dropout, *(dropout.p for dropout in dropouts), core.weight_dropout]


def module_with_dropouts(*phases: dict) -> LanguageModelModule:
    core = AWDLSTM(
        5, 6, 5, 2, input_dropout=0.4, hidden_dropout=0.2, output_dropout=0.3, weight_dropout=0.5
    )
    model = LanguageModel(Embedding(WORDS, 5, dropout=0.1), core, Softmax(5, WORDS), tied=True)
    return LanguageModelModule(
        model,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda optimizer, total_steps: PhasedLR(optimizer, total_steps, phases),
    )


def test_a_schedule_in_phases_scales_every_dropout_until_the_end() -> None:
    phases = [
        {"share": 1, "lr_factor": [1.0, 1.0], "dropout_factor": [0.0, 1.0]},
        {"share": 1, "lr_factor": [1.0, 0.0], "dropout_factor": [1.0, 1.5]},
    ]
    module, seen = module_with_dropouts(*phases), DropoutRates()
    built = [0.1, 0.4, 0.2, 0.3, 0.5]
    assert rates_of(module.model) == built
    trainer = make_trainer(max_steps=8, max_epochs=-1, callbacks=[seen])
    trainer.fit(module, datamodule=make_datamodule())
    factors = [0, 0.25, 0.5, 0.75, 1, 1.125, 1.25, 1.375]
    assert len(seen.rates) == 8
    for rates, factor in zip(seen.rates, factors, strict=True):
        assert rates == pytest.approx([factor * rate for rate in built], rel=1e-12)
    assert rates_of(module.model) == built


def test_a_schedule_that_would_drop_everything_is_refused_before_the_first_step() -> None:
    phase = {"share": 1, "lr_factor": [1.0, 1.0], "dropout_factor": [0.0, 2.0]}
    module, seen = module_with_dropouts(phase), DropoutRates()
    message = r"dropout_factor of 2 in scheduler\.phases .* dropout of 0\.5 a probability of 1\."
    with pytest.raises(UserError, match=message):
        make_trainer(max_steps=2, max_epochs=-1, callbacks=[seen]).fit(
            module, datamodule=make_datamodule()
        )
    assert seen.rates == []


@pytest.mark.parametrize("precision", [torch.float32, torch.float64, torch.bfloat16])
def test_a_stream_goes_on_in_another_precision(precision: torch.dtype):
    """Its state is as near as that precision allows; in the same one, it is the same."""
    module = make_module()
    make_trainer(max_epochs=-1, max_steps=3).fit(module, datamodule=make_datamodule())
    left = module.stream_state()
    module.to(precision)
    module.load_stream_state(left)
    taken = module.stream_state()["state"]
    for part, before in zip(itertools.chain(*taken), itertools.chain(*left["state"]), strict=True):
        assert_close(part, before.to(precision), rtol=0, atol=0)
    module.model(torch.zeros(2, 3, dtype=torch.long), taken)
