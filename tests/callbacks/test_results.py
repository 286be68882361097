import dataclasses
import json
import logging
import math
import os
from importlib.metadata import version
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from trainings import (
    Scripted,
    quiet_trainer,
    random_corpus,
    random_windows,
    small_module,
    windows_of,
)

from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.callbacks.results import Results
from lmbench.callbacks.throughput import Throughput
from lmbench.errors import Diverged
from lmbench.machine import processor
from lmbench.optim import ASGD
from lmbench.training.lightning_internals import quieten_lightning

WORDS = 9
CONFIG = {
    "seed": 17,
    "init_from": None,
    "optimizer": {"lr": 0.1},
    "callbacks": {"nt_asgd": {"non_monotone_interval": 5}, "progress": {"name": "other"}},
    "logger": {"csv": {"name": "metrics"}},
}
EVALUATION = {"protocol": "standard", "columns": 1, "burn_in": 512}
NLLS = [7.0, 4.0, 5.0]  # the second of three epochs is the best
FLOOR = {"valid": 7.125, "test": 7.375}


def run(
    folder: Path,
    *callbacks: L.Callback,
    floor: dict[str, float] | None = None,
    protocol: str = "standard",
    name: str = "lstm",
    **options,
) -> L.Trainer:
    """Trains three epochs of four steps, then tests; ``folder`` takes the results."""
    module = small_module(WORDS, lambda parameters: ASGD(parameters, lr=0.1), Scripted)
    module.script = NLLS
    corpus = dataclasses.replace(random_corpus(WORDS, 81), perplexity_floor=floor)
    datamodule = windows_of(corpus, batch_size=2, bptt=10, columns=1, protocol=protocol)
    config = CONFIG | {"model": {"name": name}, "name": "mine"}
    defaults = {"max_epochs": 3, "log_every_n_steps": 1}
    trainer = quiet_trainer(*callbacks, Results(folder, config), **(defaults | options))
    trainer.fit(module, datamodule=datamodule)
    trainer.test(module, datamodule=datamodule, verbose=False)
    return trainer


def read(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text("utf-8"))


def score(nats: float, num_tokens: int) -> dict:
    return {
        "nll": pytest.approx(nats / num_tokens, rel=1e-12),
        "ppl": pytest.approx(math.exp(nats / num_tokens), rel=1e-12),
        "num_tokens": num_tokens,
    }


def test_an_epoch_cut_short_counts_by_its_share(tmp_path: Path):
    run(tmp_path, Throughput(), max_epochs=-1, max_steps=6)
    train = read(tmp_path)["train"]
    assert (train["steps"], train["tokens"]) == (6, 2 * 39 + 2 * 20)
    assert train["epochs"] == 1.5  # of four steps each


@pytest.mark.usefixtures("matmul_precision")
def test_the_file_is_as_specified(tmp_path: Path):
    torch.set_float32_matmul_precision("high")
    throughput, nt_asgd = Throughput(), NTASGD(1)
    nt_asgd.history = [0.0, 0.0]  # the first validation is worse: the switch comes at once
    trainer = run(tmp_path, throughput, nt_asgd, floor=FLOOR)
    results = read(tmp_path)
    module = trainer.lightning_module
    peak_memory = results["train"].pop("peak_memory_bytes")
    assert isinstance(peak_memory, int)
    assert peak_memory > 0
    assert {"commit", "clean", "date"} <= results.keys()  # tests/run/test_provenance.py
    results = {k: v for k, v in results.items() if k not in ("commit", "clean", "date")}
    assert results["environment"].pop("processor") == processor()
    device = results["environment"].pop("device")
    assert device == f"cpu ({os.cpu_count()} cores)"
    assert results == {
        "lmbench_version": version("lmbench"),
        "name": "mine",
        "model": "lstm",
        # Embedding, LSTM (four gates: two weights and two biases each), softmax with bias.
        "num_parameters": 9 * 4 + 4 * (4 * 4 + 4 * 4 + 4 + 4) + (9 * 4 + 9),
        "seed": 17,
        "precision": "32-true",
        "data": {
            "name": "text",
            "vocabulary_size": WORDS,
            "num_tokens": {"train": 81, "valid": 40, "test": 40},
            "sha256": trainer.datamodule.corpus.sha256,
            "perplexity_floor": FLOOR,
        },
        "best_epoch": 1,
        "weights_sha256": module.model.weights_sha256(),
        "evaluation": EVALUATION,
        "val": score(4.0, 1),
        "test": score(*module.scores["test"][:2]),
        "nt_asgd": {"triggered_epoch": 0},
        "train": {
            "epochs": 3,
            "steps": 12,
            "tokens": 3 * 2 * 39,
            "seconds": throughput.seconds,
            "tokens_per_second": throughput.tokens_per_second,
        },
        "environment": {
            "torch": torch.__version__,
            "lightning": L.__version__,
            "num_threads": torch.get_num_threads(),
            "float32_matmul_precision": "high",
        },
    }
    assert results["test"]["num_tokens"] == 39
    assert 0 < throughput.seconds < math.inf
    assert 0 < throughput.tokens_per_second < math.inf


def test_a_protocol_with_another_divisor_has_no_floor(tmp_path: Path):
    run(tmp_path, floor=FLOOR, protocol="awd_lstm_lm")
    assert "perplexity_floor" not in read(tmp_path)["data"]


def test_what_is_missing_is_null_or_left_out(tmp_path: Path):
    run(tmp_path, max_epochs=1)
    results = read(tmp_path)
    assert "perplexity_floor" not in results["data"]
    assert results["nt_asgd"] == {"triggered_epoch": None}
    measured = ("tokens", "seconds", "tokens_per_second")
    assert [results["train"][key] for key in measured] == [None] * 3


@pytest.mark.filterwarnings("ignore:.*limit_test_batches=0:UserWarning")
def test_without_a_test_its_score_is_null(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    run(tmp_path, limit_test_batches=0)
    results = read(tmp_path)
    assert results["test"] is None
    assert f" {results['val']['ppl']:.2f} " in caplog.text


def test_the_table_shows_both_perplexities(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    run(tmp_path, floor=FLOOR)
    shown = caplog.text
    test = read(tmp_path)["test"]["ppl"]
    assert "lstm on text" in shown
    for split, perplexity in (("valid", math.exp(4)), ("test", test)):
        (row,) = [line for line in shown.splitlines() if f" {split} " in line]
        assert f" {perplexity:.2f} " in row
        assert f" {FLOOR[split]:.2f} " in row


@pytest.mark.parametrize("name", ["lstm[v2]", "[/b]", "\x1b[31mred"])
def test_a_model_of_any_name_has_a_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
):
    caplog.set_level("INFO")
    run(tmp_path, name=name)
    plain = name.replace("\x1b", "\\x1b")
    assert f"{plain} on text" in caplog.text


def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path):
    class Broken(Throughput):
        def on_train_end(self, trainer, pl_module) -> None:
            self.seconds = math.nan

    (tmp_path / "results.json").write_text("before")
    with pytest.raises(ValueError, match="not JSON compliant"):
        run(tmp_path, Broken(), max_epochs=1)
    assert (tmp_path / "results.json").read_text() == "before"


def test_a_test_perplexity_beyond_all_numbers_is_a_divergence(tmp_path: Path):
    class Explode(L.Callback):
        def on_test_start(self, trainer, pl_module) -> None:
            for parameter in pl_module.parameters():
                parameter.data.mul_(1e5)

    with pytest.raises(Diverged, match=r"^The best weights give test \S+ nats a token"):
        run(tmp_path, Explode(), max_epochs=1)
    assert not (tmp_path / "results.json").exists()


def test_tensorboard_gets_the_best_scores_with_the_hyperparameters(tmp_path: Path):
    logged = []

    class Board(TensorBoardLogger):
        def log_hyperparams(self, params, metrics=None, step=None) -> None:
            logged.append((params, metrics))

    board = Board(tmp_path, name="", version="")
    noted = {"overrides": ["model=lstm", "+optimizer.lr=0.1", "seed=17"]}
    (tmp_path / "overrides.json").write_text(json.dumps(noted))
    trainer = run(tmp_path, logger=board)
    nats, num_tokens, _ = trainer.lightning_module.scores["test"]
    expected = {
        "best/val_ppl": pytest.approx(math.exp(4)),
        "best/test_ppl": pytest.approx(math.exp(nats / num_tokens)),
    }
    hyperparameters = {
        "model.name": "lstm",
        "name": "mine",
        "seed": 17,
        "optimizer.lr": 0.1,
        "init_from": None,
        "callbacks.nt_asgd.non_monotone_interval": 5,
    }
    (entry,) = [entry for entry in logged if entry[1]]
    assert entry == (hyperparameters, expected)
    assert list(entry[0]) == list(hyperparameters)  # what the command set comes first


@pytest.mark.parametrize("verbose", [True, False])
def test_why_early_stopping_ended_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, verbose: bool
):
    """Once, whether Lightning's callback says so itself or not."""
    early = EarlyStopping("val/ppl", patience=1, min_delta=1e9, verbose=verbose)
    caplog.set_level(logging.INFO)
    quieten_lightning()
    more = (early, Results(tmp_path, {}))
    quiet_trainer(*more, max_epochs=9).fit(small_module(9), datamodule=random_windows(9, 162))
    found = [message for message in caplog.messages if "did not improve" in message]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("limits", "is_marked"),
    [
        ({}, False),
        ({"limit_val_batches": 1}, True),
        ({"limit_test_batches": 1}, True),
        ({"limit_test_batches": 0}, False),  # a search does not look at test
    ],
)
def test_results_of_a_part_of_a_split_are_marked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limits: dict, is_marked: bool
):
    caplog.set_level(logging.INFO)
    run(tmp_path, **limits)
    assert ("Not a result." in caplog.text) == is_marked
