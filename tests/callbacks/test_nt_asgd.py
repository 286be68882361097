import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.testing import assert_close
from trainings import Scripted, quiet_trainer, random_windows, small_module, weights_of

from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax
from lmbench.optim import ASGD
from lmbench.perplexity import Score
from lmbench.training.module import LanguageModelModule

WORDS, COLUMNS, BPTT, SEED = 11, 2, 8, 5
LR, DECAY = 0.5, 0.01
SCORES = [1.0, 1.0, 2.0, 0.0, 0.0]  # with n = 1 the third validation is the first to switch
SWITCH = 2

Weights = dict[str, Tensor]


class Recorder(L.Callback):
    """The iterates and rates of each step; per epoch, the weights in validation and after it."""

    def __init__(self) -> None:
        self.iterates: list[tuple[int, Weights]] = []
        self.lrs: list[float] = []
        self.seen: list[Weights] = []
        self.raw: list[Weights] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.lrs.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.iterates.append((trainer.current_epoch, weights_of(pl_module)))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *_) -> None:
        if batch_idx == 0:
            self.seen.append(weights_of(pl_module))

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.raw.append(weights_of(pl_module))

    def averages(self, first_epoch: int) -> list[Weights]:
        """Per epoch, the mean of all iterates since ``first_epoch``, except the very first."""
        means = []
        for epoch, raw in enumerate(self.raw):
            averaged = [one for at, one in self.iterates if first_epoch <= at <= epoch][1:]
            mean = {name: sum(one[name] for one in averaged) / len(averaged or [0]) for name in raw}
            means.append(mean if averaged else raw)
        return means


class Run(NamedTuple):
    trainer: L.Trainer
    module: LanguageModelModule
    callback: NTASGD
    recorder: Recorder


def make_datamodule() -> LanguageModelDataModule:
    options = {"batch_size": COLUMNS, "bptt": BPTT, "seed": SEED}
    return random_windows(WORDS, 131, 40, 9, variable_windows=True, **options)


def make_module(optimizer: Callable | None = None, scheduler: Callable | None = None) -> Scripted:
    torch.manual_seed(0)
    model = LanguageModel(
        Embedding(WORDS, 4), LSTM(4, 4, num_layers=1), Softmax(4, WORDS), tied=True
    )
    for parameter in model.parameters():  # sharper than a real start, so that errors show
        nn.init.uniform_(parameter, -0.7, 0.7)
    averaged_sgd = optimizer or partial(ASGD, lr=LR, weight_decay=DECAY)
    return Scripted(model, averaged_sgd, scheduler).double()


def fit(
    *more: L.Callback,
    module: Scripted | None = None,
    scores: list[float] = SCORES,
    max_epochs: int = len(SCORES),
    **options,
) -> Run:
    module = module or make_module()
    module.script = scores
    callback, recorder = NTASGD(1, **options), Recorder()
    saves = any(isinstance(item, ModelCheckpoint) for item in more)
    trainer = quiet_trainer(
        callback, recorder, *more, max_epochs=max_epochs, enable_checkpointing=saves
    )
    trainer.fit(module, datamodule=make_datamodule())
    return Run(trainer, module, callback, recorder)


def every_epoch(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=False)


@pytest.fixture(scope="module")
def plain() -> Recorder:
    """A record of training by torch's own SGD, whose steps test_equivalence.py verifies."""
    recorder = Recorder()
    module = make_module(partial(torch.optim.SGD, lr=LR, weight_decay=DECAY))
    quiet_trainer(recorder, max_epochs=len(SCORES)).fit(module, datamodule=make_datamodule())
    return recorder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """A training with a switch after its third epoch, and a checkpoint of each epoch."""
    return fit(every_epoch(folder))


def first_switch(scores: list[float], interval: int) -> int | None:
    """The index of the first score worse than one more than ``interval`` places before it."""
    for now, score in enumerate(scores):
        if any(score > scores[before] for before in range(now - interval)):
            return now
    return None


class BareTrainer(SimpleNamespace):
    """The parts of a trainer that the callback uses."""

    def __init__(self) -> None:
        optimizer = ASGD([nn.Parameter(torch.zeros(1))], lr=1.0)
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


def decide(scores: list[float], interval: int, **options: bool) -> tuple[NTASGD, BareTrainer]:
    """The callback after validations with these scores, without training."""
    callback, trainer, module = NTASGD(interval, **options), BareTrainer(), small_module(WORDS)
    callback.on_fit_start(trainer, module)
    for trainer.current_epoch, score in enumerate(scores):
        module.scores["val"] = Score(score, 1)
        callback.on_validation_start(trainer, module)
        callback.on_validation_end(trainer, module)
        if callback.triggered_epoch is not None:
            break
    return callback, trainer


def triggered_epoch(scores: list[float], interval: int) -> int | None:
    return decide(scores, interval)[0].triggered_epoch


def test_finetuning_that_has_ended_stays_ended_after_a_resume():
    options = {"average_from_start": True, "stop_when_stalled": True}
    ended, trainer = decide([1.0, 1.0, 2.0], 1, **options)
    assert trainer.should_stop
    resumed, again = NTASGD(1, **options), BareTrainer()
    resumed.load_state_dict(ended.state_dict())
    resumed.on_fit_start(again, None)
    resumed.on_train_start(again, None)
    assert again.should_stop


def test_the_trigger_on_random_histories():
    chance = random.Random(0)
    outcomes = set()
    for _ in range(200):
        interval = chance.randint(1, 6)
        length = chance.choice([interval, interval + 1, interval + 2, 20])
        # Falling on average, with few distinct values, so that ties are common.
        scores = [chance.randint(0, 6) / 2 - index / 4 // 1 for index in range(length)]
        expected = first_switch(scores, interval)
        callback, _ = decide(scores, interval)
        assert callback.triggered_epoch == expected
        assert callback.history == (scores if expected is None else [])
        outcomes.add(None if expected is None else min(expected - interval, 3))
    assert outcomes == {None, 1, 2, 3}


def test_a_diverged_validation_does_not_trigger():
    assert triggered_epoch([1, 1, math.nan], 1) is None  # no average mends that


def test_an_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="non_monotone_interval must be at least 1"):
        NTASGD(0)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_it_needs_averaged_sgd(optimizer: Callable):
    with pytest.raises(UserError, match=rf"is {optimizer.__name__}\. Set optimizer=asgd"):
        fit(module=make_module(partial(optimizer, lr=0.1)))


def test_averaging_from_the_start_averages_the_iterates_of_plain_sgd(plain: Recorder):
    """And the raw iterates are those of plain SGD, whether averaged or not."""
    run = fit(average_from_start=True)
    assert run.callback.triggered_epoch is None
    assert_close(run.recorder.raw, plain.raw, rtol=0, atol=1e-12)
    assert_close(run.recorder.seen, plain.averages(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("from_start", [True, False])
def test_it_can_end_the_training_when_the_averages_stall(from_start: bool):
    """By the same rule, on the validations of the averages alone."""
    run = fit(average_from_start=from_start, stop_when_stalled=True, max_epochs=12)
    # The scores are 1, 1, 2 (worse than the first 1), then 0 for ever, which never stalls.
    assert run.trainer.current_epoch == (SWITCH + 1 if from_start else 12)
    assert run.callback.triggered_epoch == (None if from_start else SWITCH)


def test_the_end_is_decided_anew_after_the_switch():
    scores = [1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 0.0, 0.0]
    run = fit(stop_when_stalled=True, max_epochs=8, scores=scores)
    assert run.callback.triggered_epoch == 2
    assert run.trainer.current_epoch == 6  # 3, 3, 4: the last one is worse than the first


def test_checkpoints_hold_both_the_averages_and_the_raw_iterate(
    run: Run, plain: Recorder, folder: Path
):
    raw, scored = plain.raw, plain.averages(SWITCH + 1)
    assert run.callback.triggered_epoch == SWITCH
    assert_close(run.recorder.raw, raw, rtol=0, atol=1e-12)
    assert_close(run.recorder.seen, scored, rtol=0, atol=1e-12)
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


def test_a_learning_rate_schedule_continues_after_the_switch():
    def one_cycle(optimizer, total_steps: int) -> OneCycleLR:
        return OneCycleLR(optimizer, LR, total_steps, cycle_momentum=False)

    plain = Recorder()
    module = make_module(partial(torch.optim.SGD, lr=LR, weight_decay=0.0), one_cycle)
    quiet_trainer(plain, max_epochs=len(SCORES)).fit(module, datamodule=make_datamodule())
    run = fit(module=make_module(scheduler=one_cycle))
    (config,) = run.trainer.lr_scheduler_configs
    assert config.scheduler.optimizer is run.trainer.optimizers[0]
    assert run.callback.triggered_epoch == SWITCH
    assert run.recorder.lrs == plain.lrs
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


def test_validation_outside_training_changes_nothing(run: Run):
    before, history = weights_of(run.module), list(run.callback.history)
    run.trainer.validate(run.module, datamodule=make_datamodule(), verbose=False)
    assert_close(weights_of(run.module), before, rtol=0, atol=0)
    assert run.callback.history == history
