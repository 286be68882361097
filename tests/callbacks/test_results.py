import json
import math
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.callbacks.results import Results
from lmbench.callbacks.throughput import Throughput
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax
from lmbench.module import LanguageModelModule, Score
from lmbench.optim import ASGD

WORDS = 9
EVALUATION = {"protocol": "standard", "columns": 1, "burn_in": 512}
SCORES = [(300.0, 39), (150.0, 39), (200.0, 39)]  # the second of three epochs is the best
FLOOR = {"valid": 7.125, "test": 7.375}


class Scripted(L.Callback):
    """Validation scores of our choice, epoch by epoch."""

    def on_validation_end(self, trainer, pl_module) -> None:
        pl_module.scores["val"] = Score(*SCORES[trainer.current_epoch])


def make_corpus(floor: dict[str, float] | None = None) -> Corpus:
    ids = np.random.default_rng(0).integers(0, WORDS, 161, dtype=np.int32)
    vocabulary = Vocabulary(tuple("abcdefghi"))
    return Corpus("synthetic", vocabulary, ids[:81], ids[81:121], ids[121:], floor)


def run(
    folder: Path, *callbacks: L.Callback, floor: dict[str, float] | None = None, **options
) -> L.Trainer:
    """Trains three epochs of four steps, then tests; ``folder`` takes the results."""
    torch.manual_seed(0)
    model = LanguageModel(Embedding(WORDS, 4), LSTM(4, 4, num_layers=1), Softmax(4, WORDS))
    module = LanguageModelModule(model, lambda parameters: ASGD(parameters, lr=0.1))
    datamodule = LanguageModelDataModule(
        make_corpus(floor), batch_size=2, bptt=10, evaluation_columns=1
    )
    results = Results(
        folder,
        model_name="lstm",
        seed=17,
        hyperparameters={"optimizer.lr": 0.1},
    )
    defaults = {"max_epochs": 3, "logger": False, "log_every_n_steps": 1}
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, results],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        **(defaults | options),
    )
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
def test_the_file_is_as_agreed(tmp_path: Path):
    torch.set_float32_matmul_precision("high")
    throughput, nt_asgd = Throughput(), NTASGD(1)
    nt_asgd.history = [0.0, 0.0]  # the first validation is worse: the switch comes at once
    trainer = run(tmp_path, Scripted(), throughput, nt_asgd, floor=FLOOR)
    results = read(tmp_path)
    module, corpus = trainer.lightning_module, make_corpus()
    peak_memory = results["train"].pop("peak_memory_bytes")
    assert isinstance(peak_memory, int)
    assert peak_memory > 0
    device = results["environment"].pop("device")
    assert device == f"cpu ({os.cpu_count()} cores)"
    assert results == {
        "lmbench_version": version("lmbench"),
        "model": "lstm",
        # Embedding, LSTM (four gates: two weights and two biases each), softmax with bias.
        "num_parameters": 9 * 4 + 4 * (4 * 4 + 4 * 4 + 4 + 4) + (9 * 4 + 9),
        "seed": 17,
        "precision": "32-true",
        "data": {
            "name": "synthetic",
            "vocabulary_size": WORDS,
            "num_tokens": {"train": 81, "valid": 40, "test": 40},
            "sha256": corpus.sha256,
            "perplexity_floor": FLOOR,
        },
        "best_epoch": 1,
        "weights_sha256": module.model.weights_sha256(),
        "evaluation": EVALUATION,
        "val": score(*SCORES[1]),
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


def test_what_there_is_not_is_null_or_left_out(tmp_path: Path):
    run(tmp_path, max_epochs=1)
    results = read(tmp_path)
    assert "perplexity_floor" not in results["data"]
    assert results["nt_asgd"] == {"triggered_epoch": None}
    assert [results["train"][key] for key in ("tokens", "seconds", "tokens_per_second")] == [
        None
    ] * 3


@pytest.mark.filterwarnings("ignore:.*limit_test_batches=0:UserWarning")
def test_without_a_test_its_score_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(tmp_path, Scripted(), limit_test_batches=0)
    results = read(tmp_path)
    assert results["test"] is None
    assert results["val"] == score(*SCORES[1])
    assert f"{math.exp(150 / 39):.2f}" in capsys.readouterr().out


def test_without_a_validation_its_score_is_null(tmp_path: Path):
    run(tmp_path, limit_val_batches=0)
    results = read(tmp_path)
    assert results["val"] is None
    assert results["test"]["num_tokens"] == 39


def test_the_table_shows_both_perplexities(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trainer = run(tmp_path, Scripted(), floor=FLOOR)
    shown = capsys.readouterr().out
    nats, num_tokens, _ = trainer.lightning_module.scores["test"]
    assert "lstm on synthetic" in shown
    for split, perplexity in (("valid", math.exp(150 / 39)), ("test", math.exp(nats / num_tokens))):
        (row,) = [line for line in shown.splitlines() if f" {split} " in line]
        assert f" {perplexity:.2f} " in row
        assert f" {FLOOR[split]:.2f} " in row


def test_a_stdout_that_is_full_loses_no_results(tmp_path: Path, full_stdout: Callable):
    path = tmp_path / "results.json"
    expected = rf"^stdout cannot be written: .* has finished: its results are in {path}\.$"
    with full_stdout(), pytest.raises(UserError, match=expected):
        run(tmp_path, max_epochs=1)
    assert read(tmp_path)["train"]["steps"] == 4


def test_the_file_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is written beside its place, and then put there in one go."""
    (tmp_path / "results.json").write_text("before")
    replace, seen = Path.replace, []

    def spy(self: Path, target: Path) -> Path:
        if target == tmp_path / "results.json":
            seen.append((target.read_text(), json.loads(self.read_text("utf-8"))))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    run(tmp_path, max_epochs=1)
    ((before, written),) = seen
    assert before == "before"
    assert written == read(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_number_that_is_not_finite_is_no_result(tmp_path: Path):
    class Broken(Throughput):
        def on_train_end(self, trainer, pl_module) -> None:
            self.seconds = math.nan

    (tmp_path / "results.json").write_text("before")
    with pytest.raises(ValueError, match="not JSON compliant"):
        run(tmp_path, Broken(), max_epochs=1)
    assert (tmp_path / "results.json").read_text() == "before"


def test_tensorboard_gets_the_best_scores_with_the_hyperparameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    logged = []

    class Board(TensorBoardLogger):
        def log_hyperparams(self, params, metrics=None, step=None) -> None:
            logged.append((params, metrics))

    board = Board(tmp_path, name="", version="")
    trainer = run(tmp_path, Scripted(), logger=board)
    nats, num_tokens, _ = trainer.lightning_module.scores["test"]
    expected = {
        "best/val_ppl": pytest.approx(math.exp(150 / 39)),
        "best/test_ppl": pytest.approx(math.exp(nats / num_tokens)),
    }
    assert [entry for entry in logged if entry[1]] == [({"optimizer.lr": 0.1}, expected)]
