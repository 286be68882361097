"""From config to objects: they get the values, and a wrong value is refused under its own key."""

import copy
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, Timer
from omegaconf import DictConfig, OmegaConf
from torch.testing import assert_close

from lmbench import build
from lmbench.callbacks.checkpoints import Checkpoints
from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.callbacks.time_limit import TimeLimit
from lmbench.config import conf_dir
from lmbench.data.corpus import Corpus
from lmbench.errors import UserError
from lmbench.machine import set_matmul_precision
from lmbench.model import AWDLSTM, LSTM, AdaptiveSoftmax, Softmax
from lmbench.optim import ASGD

SMALL = (
    "data=synthetic",
    "data.num_words=40",
    "data.num_train_tokens=2000",
    "data.num_valid_tokens=300",
    "data.num_test_tokens=200",
    "model.embedding_size=8",
    "model.core.hidden_size=12",
    "batching.batch_size=4",
    "batching.bptt=5",
    "evaluation.columns=2",
    "evaluation.burn_in=8",
    "trainer.accelerator=cpu",
)


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose("train", list(overrides))


def small(model: str = "lstm", *overrides: str, **changes: object) -> DictConfig:
    """A small config; ``changes`` sets keys, with two underscores for each dot, after composing."""
    config = composed(f"model={model}", *overrides, *SMALL).copy()
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return config


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build.corpus(small())


def build_all(config: DictConfig, corpus: Corpus, run_dir: Path) -> torch.optim.Optimizer:
    """Everything that a command builds before its first step."""
    build.seed_everything(config)
    if config.data != small().data:
        corpus = build.corpus(config)
    datamodule = build.datamodule(config, corpus)
    model = build.model(config, len(corpus.vocabulary))
    module = build.module(config, model)
    trainer = build.trainer(config, run_dir)
    trainer.datamodule = datamodule
    module.trainer = trainer
    optimizer = module.configure_optimizers()
    return optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer


def callbacks_of(trainer: L.Trainer) -> list[L.Callback]:
    return trainer.callbacks


def test_corpus_and_windows_get_their_values(corpus):
    assert corpus.name == "synthetic"
    assert corpus.num_tokens == {"train": 2000, "valid": 300, "test": 200}
    datamodule = build.datamodule(small(evaluation__window=9), corpus)
    train, valid = datamodule.train_dataloader(), datamodule.val_dataloader()
    assert next(iter(train)).tokens.shape == (5, 4)  # bptt, batch_size
    assert len(train) == math.ceil((2000 // 4 - 2) / 5)
    # 299 targets and 8 of burn-in in two columns.
    assert next(iter(valid)).tokens.shape == (9, 2)
    assert sum(len(batch.tokens) for batch in valid) == math.ceil((299 + 8) / 2)


def test_variable_windows_come_from_the_seed(corpus):
    def lengths(seed: int) -> list[int]:
        config = small(batching__variable_windows=True, batching__bptt=20, seed=seed)
        return [len(batch.tokens) for batch in build.datamodule(config, corpus).train_dataloader()]

    assert lengths(1) == lengths(1)
    assert lengths(1) != lengths(2)
    assert len(set(lengths(1))) > 2


def test_learning_rates_are_scaled_by_the_drawn_length_unless_told_otherwise(corpus):
    def scales(**changes: object) -> set[float]:
        config = small(batching__variable_windows=True, batching__bptt=20, **changes)
        return {batch.lr_scale for batch in build.datamodule(config, corpus).train_dataloader()}

    assert len(scales()) > 2
    assert scales(batching__scale_lr=False) == {1.0}


def test_the_published_protocol_reads_valid_in_ten_columns_and_test_in_one(corpus):
    datamodule = build.datamodule(small(evaluation__protocol="published"), corpus)
    assert datamodule.evaluation["protocol"] == "published"
    for loader, columns, num_scored in (
        (datamodule.val_dataloader(), 10, 300 - 10),
        (datamodule.test_dataloader(), 1, 200 - 1),
    ):
        assert {batch.tokens.shape[1] for batch in loader} == {columns}
        assert sum(batch.num_scored for batch in loader) == num_scored


@pytest.mark.usefixtures("matmul_precision")
def test_the_default_precision_costs_less_than_1e_5_in_the_gradient():
    config = small(float32_matmul_precision="auto")
    set_matmul_precision(config.float32_matmul_precision, "cpu")
    build.seed_everything(config)
    model = build.model(config, 5000).eval()
    exact = copy.deepcopy(model).double()
    tokens = torch.randint(5000, (36, 20))
    gradients = []
    for network in (model, exact):
        loss = network.head.loss(network(tokens[:-1]).output, tokens[1:])
        loss.backward()
        gradients.append([weight.grad.double() for weight in network.parameters()])
    for found, expected in zip(*gradients, strict=True):
        assert (found - expected).norm() / expected.norm() <= 1e-5


def test_lstm_gets_its_values():
    model = build.model(small(model__core__dropout=0.25, model__embedding_dropout=0.5), 41)
    assert isinstance(model.core, LSTM)
    assert [(layer.input_size, layer.hidden_size) for layer in model.core.layers] == [
        (8, 12),
        (12, 8),
    ]
    assert (model.core.dropout.p, model.embedding.dropout) == (0.25, 0.5)
    assert model.head.weight is model.embedding.weight
    layers = sum(4 * h * (i + h) + 2 * 4 * h for i, h in ((8, 12), (12, 8)))
    assert model.num_parameters == 41 * 8 + layers + 41


def test_untied_weights_are_two():
    model = build.model(small(model__tied=False, model__core__output_size=6), 41)
    assert model.head.weight is not model.embedding.weight
    assert (model.head.weight.shape, model.embedding.weight.shape) == ((41, 6), (41, 8))


def test_an_adaptive_softmax_learns_the_frequencies_of_the_training_split(corpus):
    config = small("lstm", "model/head=adaptive_softmax", model__head__cutoffs=[5, 20])
    size = len(corpus.vocabulary)
    head = build.model(config, size, corpus.train).head
    assert isinstance(head, AdaptiveSoftmax)
    assert (head.cutoffs, head.div_value, head.bias is not None) == ([5, 20], 4.0, True)
    words = sorted(range(size), key=lambda word: (-(corpus.train == word).sum(), word))
    assert [words[rank] for rank in head.word_ranks] == list(range(size))
    assert words != list(range(size))
    unigram = small("lstm", "model/head=adaptive_softmax", model__head__unigram_bias=True)
    log_probs = build.model(unigram, size, corpus.train).head.log_probs(torch.zeros(1, 8))[0]
    counts = torch.bincount(torch.from_numpy(corpus.train.copy()), minlength=size)
    assert_close(log_probs.exp(), (counts + 1) / (counts + 1).sum())
    without = build.model(config, size)
    assert without.head.weight is without.embedding.weight
    without.head.load_state_dict(head.state_dict())
    assert torch.equal(without.head.word_ranks, head.word_ranks)
    untied = build.model(small("lstm", "model/head=adaptive_softmax", model__tied=False), size)
    assert untied.head.weight is None


def test_a_full_softmax_does_not_ask_for_frequencies(corpus):
    head = build.model(small(), len(corpus.vocabulary), corpus.train).head
    assert isinstance(head, Softmax)


def test_cutoffs_that_cannot_be_are_named_with_their_key():
    for cutoffs, message in (([9, 5], "must be whole numbers"), ("x", "='x' has the wrong type")):
        config = small("lstm", "model/head=adaptive_softmax", model__head__cutoffs=cutoffs)
        with pytest.raises(UserError, match=rf"^model\.head\.cutoffs ?{message}"):
            build.model(config, 41)


def test_awd_lstm_gets_its_values():
    core = build.model(small("awd_lstm", model__core__weight_dropout=0.375), 41).core
    assert isinstance(core, AWDLSTM)
    assert (core.input_dropout.p, core.hidden_dropout.p, core.output_dropout.p) == (0.65, 0.2, 0.4)
    assert core.weight_dropout == 0.375
    assert len(core.layers) == 3


def test_another_core_is_built_into_a_model():
    swapped = composed("model=awd_lstm", "model/core=lstm", *SMALL)
    model = build.model(swapped, 41)
    assert isinstance(model.core, LSTM)
    assert len(model.core.layers) == 2
    assert model.embedding.dropout == 0.1  # of the model, not of the core


def test_optimizer_and_trainer_get_their_values(corpus, tmp_path):
    config = small("awd_lstm", optimizer__lr=0.5, trainer__max_epochs=3, trainer__max_steps=11)
    optimizer = build_all(config, corpus, tmp_path)
    assert type(optimizer) is ASGD
    assert {key: optimizer.param_groups[0][key] for key in ("lr", "weight_decay")} == {
        "lr": 0.5,
        "weight_decay": 1.2e-6,
    }
    trainer = build.trainer(config, tmp_path)
    assert (trainer.max_epochs, trainer.max_steps, trainer.gradient_clip_val) == (3, 11, 0.25)
    assert (trainer.num_devices, trainer.precision) == (1, "32-true")
    assert trainer.num_sanity_val_steps == 0
    nt_asgd = next(callback for callback in callbacks_of(trainer) if isinstance(callback, NTASGD))
    assert nt_asgd.non_monotone_interval == 5
    assert isinstance(trainer.checkpoint_callback, Checkpoints)
    assert trainer.checkpoint_callback.last_path == tmp_path / "checkpoints" / "last.ckpt"


def test_training_needs_no_library_of_the_reports_and_exports():
    """So that scripts/gpu_check.sh runs where there is torch and Lightning, and little else."""
    program = "import sys, lmbench.build, lmbench.train; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not {"datasets", "pyarrow", "safetensors"} & set(result.stdout.split())


def test_a_run_without_checkpoints_is_refused(tmp_path):
    config = small(callbacks__checkpoints=None)
    with pytest.raises(UserError, match=r"^callbacks\.checkpoints is missing: .*interval_minutes"):
        build.trainer(config, tmp_path)


def test_the_schedule_ends_with_the_run(corpus, tmp_path):
    config = small(trainer__max_epochs=3, optimizer__lr=0.5)
    module = build.module(config, build.model(config, len(corpus.vocabulary)))
    module.trainer = trainer = build.trainer(config, tmp_path)
    trainer.datamodule = build.datamodule(config, corpus)
    scheduler: Any = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    assert scheduler.total_steps == 3 * math.ceil((2000 // 4 - 2) / 5)
    assert scheduler.optimizer.param_groups[0]["max_lr"] == 0.5


@pytest.mark.parametrize("precision", ["64-true", 64])
def test_a_checkpoint_of_float64_finds_weights_that_hold_it(corpus, precision: str | int):
    made = {}
    for name, options in (("float32", {}), ("float64", {"trainer__precision": precision})):
        torch.manual_seed(0)
        config = small("awd_lstm", "model/head=adaptive_softmax", **options)
        made[name] = build.module(config, build.model(config, len(corpus.vocabulary)))
    weights = {name: dict(module.named_parameters()) for name, module in made.items()}
    assert {weight.dtype for weight in weights["float64"].values()} == {torch.float64}
    for name, weight in weights["float32"].items():  # the same start
        assert torch.equal(weights["float64"][name], weight.double())


@pytest.mark.parametrize(("pct_start", "is_refused"), [(0.05, True), (0.0, False), (0.1, False)])
def test_a_schedule_that_would_rise_in_a_single_step_is_refused(
    corpus, tmp_path, pct_start: float, is_refused: bool
):
    config = small(scheduler__pct_start=pct_start, trainer__max_epochs=-1, trainer__max_steps=20)
    module = build.module(config, build.model(config, len(corpus.vocabulary)))
    module.trainer = trainer = build.trainer(config, tmp_path)
    trainer.datamodule = build.datamodule(config, corpus)
    message = r"^scheduler: of 20 steps, .*Set scheduler\.pct_start=0\.0, "
    with pytest.raises(UserError, match=message) if is_refused else nullcontext():
        module.configure_optimizers()


def test_a_callback_or_logger_set_to_null_is_left_out(tmp_path):
    trainer = build.trainer(small(logger__tensorboard=None, callbacks__progress=None), tmp_path)
    assert [logger.name for logger in trainer.loggers] == ["csv"]
    assert "Progress" not in [type(callback).__name__ for callback in callbacks_of(trainer)]


def test_the_seed_decides_the_weights():
    def weight(seed: int) -> torch.Tensor:
        config = small(seed=seed)
        build.seed_everything(config)
        return build.model(config, 41).embedding.weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", "abc", "int"),
        ("seed", None, "int"),
        ("seed", 1.5, "int"),
        ("seed", True, "int"),
        ("data.num_words", "many", "int"),
        ("batching.bptt", True, "int"),
        ("batching.batch_size", 2.5, "int"),
        ("batching.variable_windows", 1, "bool"),
        ("batching.scale_lr", 0, "bool"),
        ("evaluation.columns", 1.5, "int"),
        ("evaluation.burn_in", "x", "int"),
        ("evaluation.window", None, "int"),
        ("loss.ar_alpha", "x", "float"),
        ("loss.tar_beta", True, "float"),
        ("model.embedding_size", "x", "int"),
        ("model.embedding_dropout", "x", "float"),
        ("model.tied", 3, "bool"),
        ("model.core.hidden_size", 1.5, "int"),
        ("model.core.dropout", "x", "float"),
        ("model.head.bias", "x", "bool"),
        ("optimizer.lr", "abc", "float or Tensor"),
        ("optimizer.lr", None, "float or Tensor"),
        ("optimizer.betas", 3, "tuple"),
        ("scheduler.pct_start", "x", "float"),
        ("trainer.max_epochs", "abc", "int or None"),
        ("trainer.max_steps", 1.5, "int"),
        ("trainer.devices", None, "int or list[int] or str"),
        ("trainer.devices", True, "int or list[int] or str"),
        ("trainer.limit_train_batches", "x", "float or int or None"),
        ("trainer.gradient_clip_val", "x", "float or int or None"),
        ("callbacks.checkpoints.interval_minutes", "x", "float"),
        ("logger.csv.save_dir", ["a"], "Path or str"),
    ],
)
def test_a_wrong_type_is_named_with_its_key(key, value, expected, corpus, tmp_path):
    config = small("lstm", "optimizer=adam")
    OmegaConf.update(config, key, value)
    with pytest.raises(UserError) as error:
        build_all(config, corpus, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{key}={value!r} has the wrong type: {type(value).__name__} ")
    assert f"instead of {expected}" in message


def test_an_option_chosen_with_a_dot_is_pointed_to_the_slash(corpus):
    with pytest.raises(UserError, match=r"^model\.core=gru .*model/core=NAME"):
        build.model(small(model__core="gru"), len(corpus.vocabulary))


def test_whole_numbers_stand_for_floats_and_lists_for_tuples(corpus, tmp_path):
    changes = {"optimizer__lr": 1, "loss__ar_alpha": 2, "optimizer__betas": [0.5, 0.75]}
    config = small("lstm", "optimizer=adam", **changes)
    optimizer = build_all(config, corpus, tmp_path)
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.5, 0.75)


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, r"^seed: -1 is not in bounds"),
        ("seed", 2**40, r"^seed: .* not in bounds"),
        ("data.num_topics", 0, r"^data\.num_topics must be at least 1"),
        ("batching.batch_size", 0, r"^batching\.batch_size must be at least 1, not 0"),
        ("batching.batch_size", 1000, r"2,000 tokens, too few for batching\.batch_size=1000"),
        ("evaluation.columns", 0, r"^evaluation\.columns must be at least 1"),
        ("evaluation.burn_in", -1, r"^evaluation\.burn_in must be at least 0"),
        ("model.embedding_size", 0, r"^model\.embedding_size must be greater"),
        ("model.embedding_dropout", 2.0, r"^model\.embedding_dropout must be at least 0 and less"),
        ("model.core.dropout", 1.5, r"^model\.core\.dropout must be .* less than 1, got 1\.5"),
        ("model.core.num_layers", 0, r"^model\.core\.num_layers must be at least 1"),
        ("model.core.output_size", 7, r"tied weights embedding_size \(8\) .* output_size \(7\)"),
        ("optimizer.lr", -1, r"^optimizer: .*learning rate: -1"),
        ("optimizer._target_", "torch.optim.Atom", r"^optimizer\._target_: .*torch\.optim\.Atom"),
        ("scheduler.pct_start", 5.0, r"^scheduler: .*pct_start"),
        (
            "callbacks.checkpoints.interval_minutes",
            -1,
            r"^callbacks\.checkpoints\.interval_minutes must not be negative, got -1",
        ),
        ("trainer.devices", 0, rf"^trainer\.devices=0, but .* {CORES} CPU cores.*from 1 to"),
        ("trainer.devices", CORES + 1, rf"^trainer\.devices={CORES + 1}, but .* {CORES} CPU"),
        ("trainer.devices", "two", r"^trainer: .*devices"),
        ("trainer.precision", "foo", r"^trainer: .*'foo'.*32-true"),
        ("trainer.accelerator", "foo", r"^trainer\.accelerator=foo is none .*cpu, cuda, or auto"),
        ("trainer.accelerator", "mps", r"^trainer\.accelerator=mps is none .* float64"),
        (
            "trainer.gradient_clip_val",
            -0.25,
            r"^trainer\.gradient_clip_val=-0\.25 must be at least 0",
        ),
        ("trainer.log_every_n_steps", -1, r"^trainer\.log_every_n_steps=-1 must be at least 0"),
        ("trainer.enable_progress_bar", False, r"^trainer\.enable_progress_bar is set by lmbench"),
        ("batching.seed", 3, r"^batching\.seed is set by lmbench itself"),
        ("model.core.input_size", 5, r"^model\.core\.input_size is set by lmbench itself"),
        ("loss.ar_alpha", -1.0, r"^loss\.ar_alpha must be finite and at least 0, not -1"),
        ("loss.tar_beta", float("nan"), r"^loss\.tar_beta must be finite and at least 0, not nan"),
        ("trainer.accumulate_grad_batches", 2, r"^trainer\.accumulate_grad_batches=2 .*one step"),
        ("trainer.val_check_interval", 0.5, r"^trainer\.val_check_interval=0\.5 .*epoch's end"),
        ("trainer.val_check_interval", 1, r"^trainer\.val_check_interval=1 .*epoch's end"),
        (
            "callbacks.checkpoints.dirpath",
            "ckpt",
            r"^callbacks\.checkpoints\.dirpath=ckpt: it is checkpoints",
        ),
        ("callbacks.checkpoints.monitor", "val/ppl", r"^callbacks\.checkpoints\.monitor=val/ppl: "),
        ("trainer.strategy", "foo", r"^trainer: .*'foo'.*ddp"),
        ("trainer.strategy", "ddp_spawn", r"^trainer\.strategy=ddp_spawn: .*strategy=ddp\."),
        ("trainer.strategy", "ddp_notebook", r"^trainer\.strategy=ddp_notebook: "),
        ("trainer.max_steps", -5, r"^trainer: .*max_steps.*-5"),
        *(
            (f"trainer.{name}", 0, rf"^trainer\.{name}=0 .*without a validation.*best checkpoint")
            for name in ("limit_val_batches", "limit_train_batches", "max_epochs", "max_steps")
        ),
        ("trainer.limit_val_batches", 0.0, r"without a validation"),
    ],
)
def test_a_value_that_cannot_be_is_refused(key, value, message, corpus, tmp_path):
    config = small()
    OmegaConf.update(config, key, value, force_add=True)
    with pytest.raises(UserError, match=message):
        build_all(config, corpus, tmp_path)


def test_a_value_without_a_default_must_be_set():
    with pytest.raises(UserError, match=r"^data\.path has no default: set data\.path=…"):
        build.corpus(composed("data=text"))


def test_an_unknown_evaluation_protocol_is_refused(corpus):
    with pytest.raises(UserError, match=r"^evaluation\.protocol must be .*not 'exact'"):
        build.datamodule(small(evaluation__protocol="exact"), corpus)


def test_an_argument_that_the_target_does_not_have_is_refused(corpus, tmp_path):
    config = small()
    OmegaConf.update(config, "optimizer.nesterov_beta", 1, force_add=True)
    with pytest.raises(UserError, match=r"^optimizer\.nesterov_beta: .* has no such argument"):
        build_all(config, corpus, tmp_path)


@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_without_cuda_training_is_on_the_cpu_even_beside_apples_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("lightning.pytorch.accelerators.MPSAccelerator.is_available", lambda: True)
    trainer = build.trainer(small(trainer__accelerator="auto"), tmp_path)
    assert isinstance(trainer.accelerator, CPUAccelerator)


@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there_is_refused(accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"^trainer\.accelerator={accelerator} needs a CUDA"):
        build.trainer(small(trainer__accelerator=accelerator), tmp_path)


def test_the_interval_of_nt_asgd_is_at_least_one(tmp_path):
    config = small("awd_lstm", callbacks__nt_asgd__non_monotone_interval=0)
    with pytest.raises(
        UserError, match=r"^callbacks\.nt_asgd\.non_monotone_interval must be at least 1, not 0"
    ):
        build.trainer(config, tmp_path)


def test_nt_asgd_needs_averaged_sgd(corpus, tmp_path):
    config = composed("model=awd_lstm", "optimizer=adam", *SMALL)
    module = build.module(config, build.model(config, len(corpus.vocabulary)))
    trainer: L.Trainer = build.trainer(config, tmp_path)
    with pytest.raises(
        UserError, match=r"(?s)nt_asgd.*Adam.*optimizer=asgd.*callbacks\.nt_asgd=null"
    ):
        trainer.fit(module, datamodule=build.datamodule(config, corpus))
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    "choices",
    [
        ("model=lstm", "optimizer=asgd"),
        ("model=lstm", "optimizer=asgd_torch"),
        ("model=awd_lstm", "callbacks=default"),
        ("model=awd_lstm", "callbacks.nt_asgd=null"),
    ],
)
def test_averages_that_nothing_would_use_are_refused(choices: tuple[str, ...], tmp_path: Path):
    config = composed(*choices, *SMALL)
    trainer = build.trainer(config, tmp_path)
    with pytest.raises(UserError, match=r"iterate\. Set callbacks=nt_asgd, or optimizer=sgd"):
        build.require_use_of_averages(config, trainer)


@pytest.mark.parametrize("choices", [("model=lstm",), ("model=awd_lstm",)])
def test_the_models_own_optimizers_are_not_refused(choices: tuple[str, ...], tmp_path: Path):
    config = composed(*choices, *SMALL)
    build.require_use_of_averages(config, build.trainer(config, tmp_path))


def test_errors_keep_their_cause():
    with pytest.raises(UserError) as error:
        build.model(small(model__core__dropout=1.5), 41)
    assert isinstance(error.value.__cause__, ValueError)


def test_a_limit_of_time_ends_the_run_and_is_checked(tmp_path):
    trainer: L.Trainer = build.trainer(small(trainer__max_time="00:01:00:00"), tmp_path)
    (limit,) = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]
    assert isinstance(limit, TimeLimit)
    assert limit.time_remaining() == 3600
    without = build.trainer(small(), tmp_path)
    assert not any(isinstance(callback, Timer) for callback in without.callbacks)
    for wrong, message in (
        ("one hour", r"^trainer: .*DD:HH:MM:SS"),
        (60, r"^trainer\.max_time=60 has the wrong type: int instead of dict or str"),
        ({"minute": 1}, r"^trainer: .*'minute'"),
        ("00:00:00:00", r"^trainer\.max_time must be above zero"),
    ):
        with pytest.raises(UserError, match=message):
            build.trainer(small(trainer__max_time=wrong), tmp_path)


def test_hyperparameters_are_what_moves_numbers(tmp_path, monkeypatch):
    seen = {}

    class Seen(Callback):
        def __init__(self, run_dir: Path, *, hyperparameters: dict, **others: object) -> None:
            seen.update(hyperparameters)

    monkeypatch.setattr(build, "Results", Seen)
    build.trainer(small("awd_lstm"), tmp_path)
    assert seen["callbacks.nt_asgd.non_monotone_interval"] == 5
    assert {"seed", "optimizer.lr", "model.core.hidden_size", "trainer.max_epochs"} <= set(seen)
    nodes = {tuple(key.split(".")[:2]) for key in seen if key.startswith(("callbacks", "logger"))}
    assert nodes == {("callbacks", "nt_asgd")}
