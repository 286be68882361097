"""What training logs, scores, keeps and ends with; test_equivalence.py tests its arithmetic."""

import itertools
import math
from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.testing import assert_close
from trainings import Scripted, quiet_trainer, random_windows, weights_of

from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError
from lmbench.model import AWDLSTM, Embedding, LanguageModel, Softmax
from lmbench.optim import PhasedLR
from lmbench.perplexity import Score
from lmbench.training.module import Best, LanguageModelModule

WORDS = 11
BPTT = 8
LR = 0.3  # which float32 rounds


class RecordingSGD(torch.optim.SGD):
    """Records the learning rate of each step."""

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
        self.validated_at: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))
        self.num_scored.append(batch.num_scored)

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
    defaults = {"batch_size": 3, "bptt": BPTT, "variable_windows": True, "window": 10}
    return random_windows(WORDS, 211, 64, 49, **(defaults | options))


def make_module(scheduler=None, **penalties) -> LanguageModelModule:
    torch.manual_seed(0)
    core = AWDLSTM(
        5, 6, 5, 2, input_dropout=0.0, hidden_dropout=0.0, output_dropout=0.0, weight_dropout=0.0
    )
    model = LanguageModel(Embedding(WORDS, 5), core, Softmax(5, WORDS), tied=True)
    for parameter in model.parameters():  # sharper than a real start, so that errors show
        nn.init.uniform_(parameter, -0.7, 0.7)
    optimizer = partial(RecordingSGD, lr=LR)
    return LanguageModelModule(model, optimizer, scheduler, **penalties).double()


def make_trainer(*callbacks: L.Callback, **options) -> L.Trainer:
    return quiet_trainer(*callbacks, **({"max_epochs": 2, "log_every_n_steps": 1} | options))


def stream_nats(module: LanguageModelModule, ids: np.ndarray) -> Tensor:
    """Nats of each token but the first of a stream that is read at once, in one column."""
    tokens = torch.from_numpy(ids.astype(np.int64))[:, None]
    with torch.no_grad():
        log_probs = module.model.head.log_probs(module.model(tokens[:-1]).output)
    return -log_probs.gather(-1, tokens[1:, :, None])[:, 0, 0]


@pytest.mark.parametrize(("algorithm", "order"), [("norm", 2.0), ("value", math.inf)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("fused", [True, False])
def test_clipped_gradients_end_at_the_bound(
    precision: str, algorithm: str, order: float, fused: bool
):
    sizes: list[tuple[float, float]] = []

    class NotesGradients(L.Callback):
        def note(self, trainer, pl_module, *_) -> None:
            gradients = torch.cat([p.grad.flatten() for p in pl_module.model.parameters()])
            sizes.append((gradients.norm().item(), gradients.norm(p=order).item()))

        on_before_optimizer_step = on_train_batch_end = note

    module = make_module().float()
    module._make_optimizer = partial(torch.optim.SGD, lr=LR, fused=fused)
    make_trainer(
        NotesGradients(),
        max_steps=1,
        precision=precision,
        gradient_clip_val=0.01,
        gradient_clip_algorithm=algorithm,
    ).fit(module, datamodule=make_datamodule())
    (_, before), (norm, after) = sizes
    assert before > 0.02
    assert after == pytest.approx(0.01, rel=1e-3)  # the bound is reached to 1e-6 of the norm
    assert algorithm == "norm" or norm > 0.02


def test_validation_does_not_touch_training():
    weights, losses = [], []
    for options in ({}, {"limit_val_batches": 0}):
        module, recorder = make_module(ar_alpha=2.0, tar_beta=1.0), Recorder()
        make_trainer(recorder, **options).fit(module, datamodule=make_datamodule())
        weights.append(weights_of(module))
        losses.append(recorder.losses)
        assert len(recorder.validated_at) == (0 if options else 2)
    assert losses[0] == losses[1]
    assert_close(weights[0], weights[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ar_alpha", "tar_beta"])
@pytest.mark.parametrize("weight", [-0.5, math.inf, math.nan])
def test_a_penalty_that_is_negative_or_not_finite_is_refused(name: str, weight: float):
    with pytest.raises(ValueError, match=rf"^{name} must be"):
        make_module(**{name: weight})


def test_each_process_draws_its_own_masks(monkeypatch: pytest.MonkeyPatch):
    """All are seeded alike, to begin with the same weights; only the first one keeps that seed."""
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


def test_a_fused_optimizer_that_unscales_by_itself_is_not_clipped(monkeypatch: pytest.MonkeyPatch):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer = SimpleNamespace(
        precision_plugin=plugin, gradient_clip_val=None, gradient_clip_algorithm=None
    )
    monkeypatch.setattr(LanguageModelModule, "trainer", trainer)
    module = make_module().float()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, fused=True)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    module.configure_gradient_clipping(optimizer, None)
    assert all((parameter.grad == 100).all() for parameter in module.parameters())
    with pytest.raises(UserError, match=r"16-mixed.*Set trainer\.precision=bf16-mixed"):
        module.configure_gradient_clipping(optimizer, 0.25)
    module.configure_gradient_clipping(torch.optim.SGD(module.parameters(), lr=LR), 0.25)
    gradients = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    assert gradients.norm().item() == pytest.approx(0.25, rel=1e-5)


def test_one_column_scores_the_whole_stream_in_uneven_windows():
    datamodule, module = make_datamodule(), make_module()
    trainer = make_trainer()
    (logged,) = trainer.validate(module, datamodule=datamodule, verbose=False)
    nats = stream_nats(module, datamodule.corpus.valid)
    assert len(nats) == 63  # windows of 10: the last one holds 3
    assert module.scores["val"] == (pytest.approx(nats.sum().item(), rel=1e-12), 63, 0)
    assert logged["val/nll"] == pytest.approx(nats.mean().item(), rel=1e-6)
    assert logged["val/ppl"] == pytest.approx(nats.mean().exp().item(), rel=1e-6)
    means = torch.stack([window.mean() for window in nats.split(10)])
    assert logged["val/nll"] != pytest.approx(means.mean().item(), rel=1e-4)
    assert logged["val/ppl"] != pytest.approx(means.exp().mean().item(), rel=1e-4)

    (logged,) = trainer.test(module, datamodule=datamodule, verbose=False)
    nats = stream_nats(module, datamodule.corpus.test)
    assert module.scores["test"] == (pytest.approx(nats.sum().item(), rel=1e-12), 48, 0)
    assert logged["test/ppl"] == pytest.approx(nats.mean().exp().item(), rel=1e-6)


def test_columns_with_burn_in_score_each_target_once_from_a_warm_state():
    """63 targets in 3 columns of 25: the first scores 25; the others read 6 first and score 19."""
    datamodule, module = make_datamodule(columns=3, burn_in=6), make_module()
    make_trainer().validate(module, datamodule=datamodule, verbose=False)
    ids = datamodule.corpus.valid
    later = [stream_nats(module, ids[start : start + 26])[6:] for start in (19, 38)]
    nats = torch.cat([stream_nats(module, ids[:26]), *later])
    assert len(nats) == 63
    assert module.scores["val"] == (pytest.approx(nats.sum().item(), rel=1e-12), 63, 0)
    assert nats.sum().item() != pytest.approx(stream_nats(module, ids).sum().item(), rel=1e-6)


def test_the_published_protocol_divides_the_nats_within_columns_by_the_tokens():
    """64 tokens are 10 columns of 6 with 5 targets each; the last 4 tokens are left out."""
    datamodule = make_datamodule(protocol="awd_lstm_lm", window=2)
    module, trainer = make_module(), make_trainer()
    (logged,) = trainer.validate(module, datamodule=datamodule, verbose=False)
    ids = datamodule.corpus.valid
    columns = [stream_nats(module, ids[start : start + 6]) for start in range(0, 60, 6)]
    nats = torch.cat(columns).sum().item()
    assert module.scores["val"] == (pytest.approx(nats, rel=1e-12), 50, 10)
    assert module.scores["val"].nll == pytest.approx(nats / 60, rel=1e-12)
    assert logged["val/nll"] == pytest.approx(nats / 60, rel=1e-6)
    assert logged["val/ppl"] == pytest.approx(math.exp(nats / 60), rel=1e-6)

    trainer.test(module, datamodule=datamodule, verbose=False)
    nats = stream_nats(module, datamodule.corpus.test).sum().item()
    assert module.scores["test"].nll == pytest.approx(nats / 49, rel=1e-12)


def test_train_nll_is_the_mean_over_the_tokens_since_the_last_log():
    module, recorder, rows = make_module(), Recorder(), Rows()
    trainer = make_trainer(recorder, logger=rows, log_every_n_steps=3)
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


def test_the_logged_learning_rate_is_that_of_the_step():
    def halving(optimizer, total_steps: int) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: 0.5**step)

    rows = Rows()
    trainer = make_trainer(logger=rows, max_steps=8, log_every_n_steps=4)
    trainer.fit(make_module(halving), datamodule=make_datamodule(variable_windows=False))
    logged = [row["lr"] for _, row in rows.rows if "lr" in row]
    assert logged == pytest.approx([LR * 0.5**step for step in (3, 7)], rel=1e-12)


@pytest.mark.parametrize(("interval", "logged_at"), [(4, [3, 7]), (0, [])])
def test_the_last_step_does_not_log_what_an_earlier_one_left_behind(interval: int, logged_at: list):
    rows = Rows()
    trainer = make_trainer(logger=rows, max_steps=10, log_every_n_steps=interval)
    trainer.fit(make_module(), datamodule=make_datamodule(variable_windows=False))
    assert [step for step, row in rows.rows if "train/nll" in row] == logged_at
    assert [step for step, row in rows.rows if "lr" in row] == logged_at
    assert [step for step, row in rows.rows if "val/nll" in row] == [8, 9]
    assert ("train/ppl" in trainer.callback_metrics) == bool(logged_at)


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
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [10, 15]),
        ({"max_epochs": 2, "check_val_every_n_epoch": 3}, [10]),
        ({"max_epochs": -1, "max_steps": 12, "check_val_every_n_epoch": 2}, [10, 12]),
        ({"max_steps": 3, "check_val_every_n_epoch": 2}, [3]),
    ],
)
def test_the_end_of_training_is_validated_once(options: dict, validated_at: list[int]):
    recorder = Recorder()
    datamodule = make_datamodule(bptt=14, variable_windows=False)
    make_trainer(recorder, **options).fit(make_module(), datamodule=datamodule)
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
    assert lrs == pytest.approx(np.interp(range(num_steps), *points), rel=1e-12)


def plateau(optimizer, total_steps: int) -> ReduceLROnPlateau:
    optimizer.param_groups[0]["lr"] = 1.5
    return ReduceLROnPlateau(optimizer, factor=0.25, patience=0, threshold=0)


def test_a_plateau_lowers_the_rate_after_each_validation_that_is_no_better_than_the_best():
    module, rows = make_module(plateau), Rows()
    trainer = make_trainer(logger=rows, max_epochs=5)
    trainer.fit(module, datamodule=make_datamodule(variable_windows=False))
    nlls = [row["val/nll"] for _, row in rows.rows if "val/nll" in row]
    lr, best, expected, falls = 1.5, math.inf, [], []
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
    trainer = make_trainer(recorder, max_epochs=6, check_val_every_n_epoch=3)
    trainer.fit(module, datamodule=make_datamodule(variable_windows=False))
    steps = math.ceil(68 / BPTT)
    assert recorder.validated_at == [3 * steps, 6 * steps]
    assert set(trainer.optimizers[0].lrs) == {1.5}


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
def test_a_plateau_continues_after_a_resume(tmp_path):
    lrs = []
    for name, start in (("whole", None), ("resumed", tmp_path / "whole/epoch=1.ckpt")):
        checkpoints = ModelCheckpoint(
            tmp_path / name, "{epoch}", save_top_k=-1, save_on_train_epoch_end=False
        )
        trainer = make_trainer(checkpoints, max_epochs=5, enable_checkpointing=True)
        datamodule = make_datamodule(variable_windows=False)
        trainer.fit(make_module(plateau), datamodule=datamodule, ckpt_path=start)
        lrs.append(trainer.optimizers[0].lrs)
    steps = math.ceil(68 / BPTT)
    assert len(lrs[1]) == 3 * steps
    assert lrs[1] == lrs[0][2 * steps :]
    assert lrs[1][0] < lrs[0][0]  # the second validation had lowered it


@pytest.mark.parametrize(
    ("script", "best_epoch"),
    [
        ([3.0, 2.0, 2.0], 1),  # the first of equals
        ([math.nan, 5.0, 4.0], 2),
        ([2.0, math.nan, 3.0], 0),
        ([math.nan, math.inf, math.nan], None),
    ],
)
def test_the_best_validation_is_kept_saved_and_named_by_the_test(script: list, best_epoch):
    rows = Rows()
    module = Scripted(make_module().model, lambda parameters: RecordingSGD(parameters, lr=LR))
    module.script = script
    trainer = make_trainer(max_epochs=3, logger=rows)
    trainer.fit(module, datamodule=make_datamodule())
    expected = best_epoch if best_epoch is None else Best(best_epoch, Score(script[best_epoch], 1))
    assert module.best == expected
    checkpoint, resumed = {}, make_module()
    module.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.best == expected
    trainer.validate(module, datamodule=make_datamodule(), verbose=False)
    assert module.best == expected  # a validation outside training changes nothing
    trainer.test(module, datamodule=make_datamodule(), verbose=False)
    assert best_epoch is None or rows.rows[-1][1]["epoch"] == best_epoch


def test_a_model_that_has_diverged_is_scored_as_nan():
    module = make_module()
    nn.init.constant_(module.model.head.bias, math.nan)
    (logged,) = make_trainer().validate(module, datamodule=make_datamodule(), verbose=False)
    assert math.isnan(logged["val/nll"])
    assert math.isnan(logged["val/ppl"])


def test_what_processes_reduce_is_on_their_device(monkeypatch: pytest.MonkeyPatch):
    """NCCL reduces only what is on a GPU."""
    logged = {}

    def reduce(sums: torch.Tensor, reduce_op: str) -> torch.Tensor:
        logged[reduce_op] = sums
        return torch.tensor([6.0, 2.0])

    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(extra_divisor={"val": 0}),
        strategy=SimpleNamespace(reduce=reduce),
    )
    monkeypatch.setattr(LanguageModelModule, "device", torch.device("meta"))
    monkeypatch.setattr(LanguageModelModule, "trainer", trainer)
    monkeypatch.setattr(
        LanguageModelModule, "log", lambda _, name, value, **options: logged.update({name: value})
    )
    module = make_module()
    module._log_scores("val")
    on = {name: value.device.type for name, value in logged.items()}
    assert on == {"sum": "meta", "val/nll": "meta", "val/ppl": "meta"}
    assert module.scores["val"].nll == 3.0


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_the_nats_of_windows_are_added_up_in_float64(
    precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Whatever ``trainer.precision`` converts the module to."""
    module, nats = make_module().to(precision), torch.tensor(331.3, dtype=precision)
    monkeypatch.setattr(module, "_read", lambda *args: (None, None))
    monkeypatch.setattr(module.model.head, "loss", lambda *args, **options: nats)
    window = SimpleNamespace(targets=None, num_scored=2)
    for index in range(500):
        module._score(window, index, "val")  # pyright: ignore[reportArgumentType]
    assert (float(module._nats), module._num_tokens) == (500 * float(nats), 1000)


class DropoutRates(L.Callback):
    """The model's dropout probabilities at the end of each step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.rates.append(rates_of(pl_module.model))


def rates_of(model: LanguageModel) -> list[float]:
    return [dropout.p for dropout in model.dropouts]


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
        {"share": 1, "lr_factor": [1.0, 0.0], "dropout_factor": [1.0, 0.5]},
    ]
    module, seen = module_with_dropouts(*phases), DropoutRates()
    built = [0.1, 0.4, 0.2, 0.3, 0.5]
    assert rates_of(module.model) == built
    trainer = make_trainer(seen, max_steps=8, max_epochs=-1)
    trainer.fit(module, datamodule=make_datamodule())
    factors = [0, 0.25, 0.5, 0.75, 1, 0.875, 0.75, 0.625]
    assert len(seen.rates) == 8
    for rates, factor in zip(seen.rates, factors, strict=True):
        assert rates == pytest.approx([factor * rate for rate in built], rel=1e-12)
    assert rates_of(module.model) == built


@pytest.mark.parametrize("precision", [torch.float32, torch.float64, torch.bfloat16])
def test_a_stream_continues_in_another_precision(precision: torch.dtype):
    """Its state is as close as that precision allows, and equal in the same precision."""
    module = make_module()
    make_trainer(max_epochs=-1, max_steps=3).fit(module, datamodule=make_datamodule())
    left = module.stream_state()
    module.to(precision)
    module.load_stream_state(left)
    taken = module.stream_state()["state"]
    for part, before in zip(itertools.chain(*taken), itertools.chain(*left["state"]), strict=True):
        expected = before.to(torch.promote_types(precision, torch.float32))
        assert_close(part, expected, rtol=0, atol=0)
    module.model(torch.zeros(2, 3, dtype=torch.long), taken)
