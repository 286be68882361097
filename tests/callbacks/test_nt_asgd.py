import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from torch.testing import assert_close

from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.data.batching import TrainingWindows
from lmbench.data.columns import columns_for_training
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax
from lmbench.module import LanguageModelModule
from lmbench.optim import ASGD

WORDS, COLUMNS, BPTT, SEED = 11, 2, 8, 5
LR, DECAY = 0.5, 0.01
SCORES = [1.0, 1.0, 2.0, 0.0, 0.0]  # with n = 1 the third validation is the first to switch
SWITCH = 2

Weights = dict[str, Tensor]


class Scripted(L.Callback):
    """Scores of our choice, epoch by epoch."""

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        pl_module.log("scripted", SCORES[min(trainer.current_epoch, len(SCORES) - 1)])


class Recorder(L.Callback):
    """Per epoch: the weights that validation sees, what it scores, and the weights after it."""

    def __init__(self) -> None:
        self.seen: list[Weights] = []
        self.nll: list[float] = []
        self.raw: list[Weights] = []

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *_) -> None:
        if batch_idx == 0:
            self.seen.append(weights_of(pl_module))

    def on_validation_end(self, trainer, pl_module) -> None:
        nats, num_tokens, _ = pl_module.scores["val"]
        self.nll.append(nats / num_tokens)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.raw.append(weights_of(pl_module))


class NotesRates(L.Callback):
    """Notes the learning rate of each step."""

    def __init__(self) -> None:
        self.lrs: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.lrs.append(optimizer.param_groups[0]["lr"])


class Run(NamedTuple):
    trainer: L.Trainer
    module: LanguageModelModule
    callback: NTASGD
    recorder: Recorder


def make_datamodule(variable_windows: bool = True) -> LanguageModelDataModule:
    generator = np.random.default_rng(0)
    train, valid, test = (
        generator.integers(0, WORDS, length, dtype=np.int32) for length in (131, 40, 9)
    )
    vocabulary = Vocabulary(tuple(f"w{index}" for index in range(WORDS)))
    return LanguageModelDataModule(
        Corpus("text", vocabulary, train, valid, test),
        batch_size=COLUMNS,
        bptt=BPTT,
        variable_windows=variable_windows,
        evaluation_columns=1,
        seed=SEED,
    )


def make_module(optimizer: Callable | None = None, scheduler=None, seed: int = 0):
    torch.manual_seed(seed)
    model = LanguageModel(
        Embedding(WORDS, 4), LSTM(4, 4, num_layers=1), Softmax(4, WORDS), tied=True
    )
    for parameter in model.parameters():  # sharper than a real start, so that errors show
        nn.init.uniform_(parameter, -0.7, 0.7)
    averaged_sgd = optimizer or partial(ASGD, lr=LR, weight_decay=DECAY)
    return LanguageModelModule(model, averaged_sgd, scheduler).double()


def make_trainer(*callbacks: L.Callback, max_epochs: int = len(SCORES), **options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(item, ModelCheckpoint) for item in callbacks),
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        **options,
    )


def fit(
    *more: L.Callback,
    module: LanguageModelModule | None = None,
    variable_windows: bool = True,
    ckpt_path: Path | None = None,
    max_epochs: int = len(SCORES),
    **options,
) -> Run:
    module = module or make_module()
    callback, recorder = NTASGD(1, "scripted", **options), Recorder()
    trainer = make_trainer(Scripted(), callback, recorder, *more, max_epochs=max_epochs)
    trainer.fit(module, datamodule=make_datamodule(variable_windows), ckpt_path=ckpt_path)
    return Run(trainer, module, callback, recorder)


def every_epoch(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=False)


def weights_of(module: LanguageModelModule) -> Weights:
    return {name: value.detach().clone() for name, value in module.model.named_parameters()}


def averages_of(run: Run) -> Weights:
    state = run.trainer.optimizers[0].state
    return {name: state[value]["ax"] for name, value in run.module.model.named_parameters()}


def read(model: LanguageModel, weights: Weights, tokens: Tensor, targets: Tensor, state):
    output, _, state = functional_call(model, weights, (tokens, state))
    logits = functional.linear(output, weights["embedding.weight"], weights["head.bias"])
    nll = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return nll, tuple((hidden.detach(), cell.detach()) for hidden, cell in state)


def by_hand(
    variable_windows: bool = True, first_averaged_epoch: int = SWITCH + 1
) -> tuple[list[Weights], list[Weights], list[float]]:
    """Plain SGD all the way; per epoch the iterate, the weights to score and their score."""
    model, datamodule = make_module().model, make_datamodule()
    columns = columns_for_training(datamodule.corpus.train, COLUMNS)
    valid = torch.from_numpy(datamodule.corpus.valid.astype(np.int64))[:, None]
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    averaged_over: list[Weights] = []
    raw, scored, scores = [], [], []
    for epoch in range(len(SCORES)):
        state = None
        for window in TrainingWindows(
            columns, BPTT, variable=variable_windows, seed=SEED, epoch=epoch
        ):
            leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
            loss, state = read(model, leaves, window.tokens, window.targets, state)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            lr = LR * window.lr_scale
            weights = {
                name: value - lr * (gradient + DECAY * value)
                for (name, value), gradient in zip(weights.items(), gradients, strict=True)
            }
            if epoch >= first_averaged_epoch:
                averaged_over.append(weights)
        raw.append(weights)
        from_second = averaged_over[1:]
        scored.append(
            {name: torch.stack([one[name] for one in from_second]).mean(0) for name in weights}
            if from_second
            else weights
        )
        with torch.no_grad():
            scores.append(read(model, scored[-1], valid[:-1], valid[1:], None)[0].item())
    return raw, scored, scores


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """A training with a switch after its third epoch, and a checkpoint of each epoch."""
    return fit(every_epoch(folder))


def first_switch(scores: list[float], interval: int) -> int | None:
    """The first score that is worse than one which is more than ``interval`` places before it."""
    for now, score in enumerate(scores):
        if any(score > scores[before] for before in range(now - interval)):
            return now
    return None


class BareTrainer(SimpleNamespace):
    """What the callback uses of a trainer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(
            state=SimpleNamespace(fn=TrainerFn.FITTING),
            strategy=SimpleNamespace(optimizers=[optimizer]),
            lr_scheduler_configs=[],
            is_global_zero=True,
            loggers=[],
            should_stop=False,
        )

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return self.strategy.optimizers


def decide(scores: list[float], interval: int) -> NTASGD:
    """The callback after validations with these scores, without a training."""
    averaged_sgd = ASGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    trainer = BareTrainer(averaged_sgd)
    callback = NTASGD(interval)
    callback.on_fit_start(trainer, None)
    for trainer.current_epoch, score in enumerate(scores):
        trainer.callback_metrics = {"val/nll": torch.tensor(score, dtype=torch.float64)}
        callback.on_validation_start(trainer, None)
        callback.on_validation_end(trainer, None)
    return callback


def test_a_training_that_the_averages_have_ended_stays_ended_after_a_resume():
    options = {"average_from_start": True, "stop_when_stalled": True}
    ended, resumed = NTASGD(1, **options), NTASGD(1, **options)
    trainer, again = (BareTrainer(ASGD([nn.Parameter(torch.zeros(1))], lr=1.0)) for _ in range(2))
    ended.on_fit_start(trainer, None)
    for score in (1.0, 1.0, 2.0):
        trainer.callback_metrics = {"val/nll": torch.tensor(score)}
        ended.on_validation_start(trainer, None)
        ended.on_validation_end(trainer, None)
    assert trainer.should_stop
    resumed.load_state_dict(ended.state_dict())
    resumed.on_fit_start(again, None)
    resumed.on_train_start(again, None)
    assert again.should_stop


def test_a_metric_that_is_none_is_told():
    trainer = BareTrainer(ASGD([nn.Parameter(torch.zeros(1))], lr=1.0))
    trainer.callback_metrics = {"val/nll": torch.tensor(1.0)}
    callback = NTASGD(1, "val/loss")
    callback.on_fit_start(trainer, None)
    with pytest.raises(
        UserError,
        match=r"^callbacks\.nt_asgd\.monitor=val/loss is no .* There are val/nll\.$",
    ):
        callback.on_validation_end(trainer, None)


def test_the_trigger_on_random_histories():
    chance = random.Random(0)
    outcomes = set()
    for _ in range(400):
        interval = chance.randint(1, 6)
        length = chance.choice([interval, interval + 1, interval + 2, 20])
        # Falling on average, in few steps, so that ties are common.
        scores = [chance.randint(0, 6) / 2 - index / 4 // 1 for index in range(length)]
        expected = first_switch(scores, interval)
        callback = decide(scores, interval)
        assert callback.triggered_epoch == expected
        assert callback.history == (scores if expected is None else [])
        outcomes.add(None if expected is None else min(expected - interval, 3))
    assert outcomes == {None, 1, 2, 3}


def test_the_trigger_at_its_edges():
    assert decide([1, 2], 1).triggered_epoch is None  # only the last one is known: too early
    assert decide([1, 2, 2], 1).triggered_epoch == 2
    assert decide([1, 0.5, 1], 1).triggered_epoch is None  # a tie is not worse
    assert decide([2, 1, 1.5], 1).triggered_epoch is None  # the best of all but the last one is 2
    assert decide([1, 2, 2, 2, 2, 2], 5).triggered_epoch is None
    assert decide([1, 2, 2, 2, 2, 2, 2], 5).triggered_epoch == 6
    assert decide([1, 1, math.nan], 1).triggered_epoch is None  # no average mends that


@pytest.mark.parametrize("interval", [0, -1])
def test_an_interval_below_one_is_refused(interval: int):
    with pytest.raises(
        ValueError, match=f"non_monotone_interval must be at least 1, not {interval}"
    ):
        NTASGD(interval)


@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        (partial(torch.optim.Adam, lr=0.1), "Adam"),
        (partial(torch.optim.SGD, lr=0.1), "SGD"),
    ],
)
def test_it_needs_averaged_sgd(optimizer: Callable, name: str):
    with pytest.raises(UserError, match=rf"the optimizer is {name}\. Set optimizer=asgd"):
        fit(module=make_module(optimizer))


def test_it_needs_weights_whose_average_can_move():
    """In bfloat16, a thousandth of a difference of 1 is lost."""
    one = torch.ones(1, dtype=torch.bfloat16)
    assert torch.equal(one.lerp(2 * one, 1e-3), one)
    trainer = make_trainer(NTASGD(1, "scripted"), precision="bf16-true")
    module, datamodule = make_module().float(), make_datamodule()
    with pytest.raises(UserError, match=r"trainer\.precision=bf16-true.*Set .*bf16-mixed"):
        trainer.fit(module, datamodule=datamodule)


def test_weights_and_scores_are_those_of_plain_sgd_and_its_averages(run: Run):
    raw, scored, scores = by_hand()
    assert run.callback.triggered_epoch == SWITCH
    assert run.callback.history == []  # averages are not watched
    assert_close(run.recorder.raw, raw, rtol=0, atol=1e-12)
    assert_close(run.recorder.seen, scored, rtol=0, atol=1e-12)
    assert run.recorder.nll == pytest.approx(scores, rel=1e-12)
    # At each of the two epochs after the switch the averages are something else.
    for epoch in (3, 4):
        difference = scored[epoch]["embedding.weight"] - raw[epoch]["embedding.weight"]
        assert difference.abs().max() > 1e-3


def test_averaging_from_the_start_is_that_of_plain_sgds_iterates():
    """And the raw iterates are those of plain SGD, whether averaged or not."""
    run = fit(average_from_start=True)
    raw, averages, scores = by_hand(first_averaged_epoch=0)
    assert run.callback.triggered_epoch is None
    assert_close(run.recorder.raw, raw, rtol=0, atol=1e-12)
    assert_close(run.recorder.seen, averages, rtol=0, atol=1e-12)
    assert run.recorder.nll == pytest.approx(scores, rel=1e-12)


@pytest.mark.parametrize("from_start", [True, False])
def test_it_can_end_the_training_when_the_averages_stall(from_start: bool):
    """By the same rule, on the validations of the averages alone."""
    run = fit(average_from_start=from_start, stop_when_stalled=True, max_epochs=12)
    # The scores are 1, 1, 2 (worse than the first 1), then 0 for ever, which never stalls.
    assert run.trainer.current_epoch == (SWITCH + 1 if from_start else 12)
    assert run.callback.triggered_epoch == (None if from_start else SWITCH)


def test_the_end_is_decided_anew_after_the_switch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"{__name__}.SCORES", [1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 0.0, 0.0])
    run = fit(stop_when_stalled=True, max_epochs=8)
    assert run.callback.triggered_epoch == 2
    assert run.trainer.current_epoch == 6  # 3, 3, 4: the last one is worse than the first


def test_the_new_optimizer_takes_over_rate_and_decay(run: Run):
    (optimizer,) = run.trainer.optimizers
    assert type(optimizer) is ASGD
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (LR, DECAY)
    assert {id(value) for value in group["params"]} == {id(p) for p in run.module.parameters()}


def test_checkpoints_hold_the_averages_and_beside_them_the_raw_iterate(run: Run, folder: Path):
    raw, scored, _ = by_hand()
    for epoch in range(len(SCORES)):
        checkpoint = torch.load(folder / f"epoch={epoch}.ckpt", weights_only=True)
        held = checkpoint["state_dict"]
        for name, value in scored[epoch].items():
            assert_close(held[f"model.{name}"], value, rtol=0, atol=1e-12)
        assert held["model.head.weight"].data_ptr() == held["model.embedding.weight"].data_ptr()
        state = checkpoint["callbacks"]["NTASGD"]
        assert state["history"] == ([] if epoch >= SWITCH else SCORES[: epoch + 1])
        assert state["triggered_epoch"] == (None if epoch < SWITCH else SWITCH)
        if epoch >= SWITCH:
            iterate = state["raw"]
            for name, value in raw[epoch].items():
                assert_close(iterate[f"model.{name}"], value, rtol=0, atol=1e-12)
            shared = iterate["model.head.weight"].data_ptr()
            assert shared == iterate["model.embedding.weight"].data_ptr()
            assert shared != held["model.head.weight"].data_ptr()


@pytest.mark.filterwarnings(
    # The resumed training writes its checkpoints into a folder of its own.
    "ignore:The dirpath has changed:UserWarning",
    # Lightning takes all epochs to have as many steps as this one, which variable windows have not.
    "ignore:You're resuming from a checkpoint that ended before:UserWarning",
)
@pytest.mark.parametrize("epoch", [0, SWITCH - 1, SWITCH, SWITCH + 1])
def test_a_resumed_training_goes_on_to_the_last_bit(
    run: Run, folder: Path, tmp_path: Path, epoch: int
):
    resumed = fit(
        every_epoch(tmp_path),
        module=make_module(seed=1),
        ckpt_path=folder / f"epoch={epoch}.ckpt",
    )
    assert resumed.trainer.global_step == run.trainer.global_step
    assert_close(weights_of(resumed.module), weights_of(run.module), rtol=0, atol=0)
    assert_close(averages_of(resumed), averages_of(run), rtol=0, atol=0)
    assert resumed.recorder.nll[-1] == run.recorder.nll[-1]
    assert resumed.callback.history == run.callback.history
    assert resumed.callback.triggered_epoch == run.callback.triggered_epoch
    last = torch.load(folder / "epoch=4.ckpt", weights_only=True)["state_dict"]
    again = torch.load(tmp_path / "epoch=4.ckpt", weights_only=True)["state_dict"]
    assert_close(again, last, rtol=0, atol=0)


def test_averages_of_torchs_own_optimizer_are_scored():
    """Of fixed windows: it applies a changed learning rate a step late."""
    asgd = partial(torch.optim.ASGD, lr=LR, weight_decay=DECAY, t0=0, lambd=0)
    run = fit(module=make_module(asgd), variable_windows=False)
    raw, scored, scores = by_hand(variable_windows=False)
    assert type(run.trainer.optimizers[0]) is torch.optim.ASGD
    # It keeps 1/n in float32.
    assert_close(run.recorder.seen, scored, rtol=0, atol=1e-6)
    assert_close(run.recorder.raw, raw, rtol=0, atol=1e-6)
    assert run.recorder.nll == pytest.approx(scores, rel=1e-6)


def test_a_learning_rate_schedule_goes_on_after_the_switch():
    def one_cycle(optimizer, total_steps: int) -> OneCycleLR:
        return OneCycleLR(optimizer, LR, total_steps, cycle_momentum=False)

    plain, switching = NotesRates(), NotesRates()
    module = make_module(partial(torch.optim.SGD, lr=LR, weight_decay=0.0), one_cycle)
    make_trainer(plain).fit(module, datamodule=make_datamodule())
    run = fit(switching, module=make_module(scheduler=one_cycle))
    (config,) = run.trainer.lr_scheduler_configs
    assert config.scheduler.optimizer is run.trainer.optimizers[0]
    assert run.callback.triggered_epoch == SWITCH
    assert switching.lrs == plain.lrs
    assert len(set(plain.lrs)) > 20


def test_parameter_groups_stay_apart():
    def two_groups(parameters) -> ASGD:
        first, *others = parameters
        groups = [{"params": [first], "lr": 0.1}, {"params": others, "weight_decay": 0.0}]
        return ASGD(groups, lr=LR, weight_decay=DECAY)

    run = fit(module=make_module(two_groups))
    groups = run.trainer.optimizers[0].param_groups
    assert [len(group["params"]) for group in groups] == [1, 5]
    assert [group["lr"] for group in groups] == [0.1, LR]
    assert [group["weight_decay"] for group in groups] == [DECAY, 0.0]


def test_validation_outside_a_training_changes_nothing(run: Run):
    before, history = weights_of(run.module), list(run.callback.history)
    run.trainer.validate(run.module, datamodule=make_datamodule(), verbose=False)
    assert_close(weights_of(run.module), before, rtol=0, atol=0)
    assert run.callback.history == history
