"""``lmbench-train`` from the command line to its run directory, on corpora of a few lines."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small import SMALL, config_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.testing import assert_close
from trainings import command, refusal

import lmbench
from lmbench.cli.train import train
from lmbench.errors import UserError
from lmbench.evaluation.text import encode_text
from lmbench.instantiate import training as build
from lmbench.instantiate.arguments import factory
from lmbench.instantiate.model import build_model
from lmbench.run.choice import ChosenRun
from lmbench.run.config import read_run_config
from lmbench.run.directory import noted_overrides

NUM_STEPS = 12
LENGTH = (f"trainer.max_steps={NUM_STEPS}", "trainer.log_every_n_steps=2")
TINY = ("model=lstm", *SMALL, "evaluation.columns=1", "evaluation.burn_in=512", *LENGTH)
# Embedding (tied to the softmax) of 40 words and <eos>, two layers 8 → 12 → 8, softmax bias.
NUM_PARAMETERS = 41 * 8 + sum(4 * h * (i + h) + 8 * h for i, h in ((8, 12), (12, 8))) + 41


def finish(folder: Path, *arguments: str) -> str:
    """Runs the command, which must succeed; returns what it prints."""
    result = command(folder, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def sweep(folder: Path, *arguments: str) -> list[Path]:
    """Runs a sweep; returns the jobs' folders."""
    shown = finish(folder, "-m", *arguments, "hydra.sweep.dir=jobs")
    assert "lmbench-compare jobs --output jobs-compared" in shown
    return list((folder / "jobs").glob("*/"))


def results_of(run_dir: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not plain JSON")

    text = (run_dir / "results.json").read_text("utf-8")
    return json.loads(text, parse_constant=refuse)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the one run that most tests here look at."""
    folder = tmp_path_factory.mktemp("run")
    shown = finish(folder, *TINY, "seed=3")
    assert "perplexity" in shown
    assert "floor" in shown
    (run_dir,) = folder.glob("outputs/*/*")
    return run_dir


@pytest.mark.slow
def test_the_run_directory_holds_what_it_should(run_dir: Path):
    names = ["config.yaml", "overrides.json", "metrics.csv", "timing.csv", "results.json"]
    names += ["train.log", ".lock", "checkpoints", "lstm_seed_3"]
    assert {path.name for path in run_dir.iterdir()} == set(names)
    assert noted_overrides(run_dir)[-1] == "seed=3"
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert f"writing to outputs/{run_dir.parent.name}/{run_dir.name}\n" in (
        run_dir / "train.log"
    ).read_text("utf-8")


@pytest.mark.slow
def test_the_config_is_resolved_and_builds_the_same_objects(run_dir: Path, tmp_path: Path):
    again = yaml.safe_load((run_dir / "config.yaml").read_text("utf-8"))
    assert again == read_run_config(run_dir) == config_of(*TINY, "seed=3")
    assert build.trainer(again, tmp_path).max_steps == NUM_STEPS


@pytest.mark.slow
def test_results_are_those_of_the_config_and_its_best_checkpoint(run_dir: Path):
    """The keys of the file are tested in callbacks/test_results.py."""
    results, config = results_of(run_dir), read_run_config(run_dir)
    corpus = factory(config["data"], "data")()
    checkpoint = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)
    saved = checkpoint["LanguageModelDataModule"]
    assert (saved["sha256"], tuple(saved["words"])) == (corpus.sha256, corpus.vocabulary.words)
    module = build.module(config, build_model(config["model"], 41))
    module.load_state_dict(checkpoint["state_dict"])
    assert results["weights_sha256"] == module.model.weights_sha256()
    assert (results["num_parameters"], results["seed"]) == (NUM_PARAMETERS, 3)
    assert results["data"]["perplexity_floor"] == corpus.perplexity_floor
    tokens = NUM_STEPS * 4 * 5
    counts = {"epochs": tokens / 2000, "steps": NUM_STEPS, "tokens": tokens}
    assert {key: results["train"][key] for key in counts} == counts
    assert min(results["train"].values()) > 0
    assert results["environment"]["num_threads"] == 1
    model = module.model.double().eval()
    for split, ids in (("val", corpus.valid), ("test", corpus.test)):
        stream = torch.tensor(ids).long()[:, None]  # (N, 1), all of it in one window
        with torch.no_grad():
            log_probs = model.head.log_probs(model(stream[:-1]).output)
        nll = -log_probs.gather(-1, stream[1:, :, None]).mean().item()
        assert results[split]["nll"] == pytest.approx(nll, rel=1e-5)
        assert results[split]["num_tokens"] == len(ids) - 1


@pytest.mark.slow
def test_metrics_and_timing_are_separate(run_dir: Path):
    metrics, timing = rows_of(run_dir / "metrics.csv"), rows_of(run_dir / "timing.csv")
    stages = ("train", "val", "test")
    scores = {f"{stage}/{metric}" for stage in stages for metric in ("nll", "ppl")}
    assert set(metrics[0]) == {"step", "epoch", "lr"} | scores
    measured = {f"train/{name}" for name in ("tokens_per_second", "peak_memory_bytes", "seconds")}
    assert set(timing[0]) == {"step", "epoch"} | measured
    # The time of each validation, in its own row.
    done = {row["step"]: float(row["train/seconds"]) for row in timing if row["train/seconds"]}
    assert list(done) == [row["step"] for row in metrics if row["val/nll"]]
    assert list(done.values()) == sorted(done.values())
    assert min(done.values()) > 0
    assert len([row for row in metrics if row["train/nll"]]) == NUM_STEPS // 2
    results = results_of(run_dir)
    (valid,) = [row for row in metrics if row["val/nll"]]
    (test,) = [row for row in metrics if row["test/nll"]]
    assert float(valid["val/nll"]) == pytest.approx(results["val"]["nll"], rel=1e-12)
    assert float(test["test/nll"]) == pytest.approx(results["test"]["nll"], rel=1e-12)


@pytest.mark.slow
def test_tensorboard_has_scalars_and_hyperparameters(run_dir: Path):
    events = EventAccumulator(str(run_dir / "lstm_seed_3"))
    events.Reload()
    scalars = {"train/nll", "val/ppl", "test/ppl", "lr", "train/tokens_per_second"}
    assert scalars <= set(events.Tags()["scalars"])
    results = results_of(run_dir)
    assert events.Scalars("val/ppl")[-1].value == pytest.approx(results["val"]["ppl"], rel=1e-6)
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    hyperparameters = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hyperparameters["model.core.hidden_size"].number_value == 12
    target = read_run_config(run_dir)["optimizer"]["_target_"]
    assert hyperparameters["optimizer._target_"].string_value == target


@pytest.mark.slow
def test_the_seed_alone_decides_the_metrics(run_dir: Path, tmp_path: Path):
    jobs = {results_of(job)["seed"]: job for job in sweep(tmp_path, *TINY, "seed=3,4")}
    metrics = (run_dir / "metrics.csv").read_bytes()
    assert (jobs[3] / "metrics.csv").read_bytes() == metrics
    assert (jobs[4] / "metrics.csv").read_bytes() != metrics


@pytest.mark.slow
def test_awd_lstm_repeats_itself_to_the_last_bit(tmp_path: Path):
    """With every dropout, variable windows and averaged SGD."""
    start = ("callbacks.nt_asgd.average_from_start=true", "batching.batch_size=20")
    options = (*TINY[1:], *start, "trainer.max_steps=-1", "trainer.max_epochs=2", "seed=3")
    jobs = sweep(tmp_path, "model=awd_lstm", *options, "trainer.limit_val_batches=30,31")
    metrics = [(job / "metrics.csv").read_bytes() for job in jobs]
    assert metrics[0] == metrics[1]
    assert len(rows_of(jobs[0] / "metrics.csv")) > 4
    first, second = (
        torch.load(job / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for job in jobs
    )
    assert_close(second, first, rtol=0, atol=0)


@pytest.mark.slow
def test_finetuning_begins_with_a_runs_best_weights(run_dir: Path, tmp_path: Path):
    """Those of an LSTM, with an lr so small that the weights stay as they are."""
    arguments = ("experiment=finetune", f"init_from='{run_dir}'", "optimizer.lr=1e-12")
    more = ("trainer.max_steps=3", "trainer.accelerator=cpu", "evaluation.columns=1")
    finish(tmp_path, *arguments, *more, "batching.batch_size=2")
    (finetuned,) = tmp_path.glob("outputs/*/*")
    before, after = results_of(run_dir), results_of(finetuned)
    assert after["test"]["nll"] == pytest.approx(before["test"]["nll"], rel=1e-6)
    assert after["data"] == before["data"]
    assert after["num_parameters"] == NUM_PARAMETERS
    assert after["init_from"] == str(run_dir)
    assert "init_from" not in before
    config, of_run = read_run_config(finetuned), read_run_config(run_dir)
    assert (config["model"], config["data"]) == (of_run["model"], of_run["data"])
    assert config["batching"] == of_run["batching"] | {"batch_size": 2}
    assert config["optimizer"]["_target_"] == "lmbench.optim.ASGD"
    optimizer = torch.load(finetuned / "checkpoints/last.ckpt", weights_only=True)
    assert all("ax" in state for state in optimizer["optimizer_states"][0]["state"].values())

    # Killed before its first checkpoint, it starts over from the same weights.
    again = tmp_path / "again"
    again.mkdir()
    train(ChosenRun(config, resumes=True), again)
    assert results_of(again)["test"]["nll"] == pytest.approx(before["test"]["nll"], rel=1e-6)


@pytest.mark.slow
def test_weights_do_not_go_to_another_model_or_corpus(run_dir: Path, tmp_path: Path):
    start = ("experiment=finetune", f"init_from='{run_dir}'", "trainer.accelerator=cpu")
    for change, message in (
        (
            "model.core.hidden_size=13",
            "do not fit the model: size mismatch for model.core.layers.0.weight_ih_l0",
        ),
        ("+data.num_train_tokens=2100", "was trained on a corpus with sha256"),
        ("model=lstm", "cannot be combined with init_from"),
    ):
        assert message in refusal(tmp_path, *start, change)


@pytest.mark.slow
def test_a_second_run_leaves_the_first_alone(tmp_path: Path):
    arguments = (*TINY, f"hydra.run.dir='{tmp_path}/one run'")
    finish(tmp_path, *arguments)
    before = files_of(tmp_path / "one run")
    assert "holds a run already" in refusal(tmp_path, *arguments, "seed=9")
    after = files_of(tmp_path / "one run")
    assert after == before


@pytest.mark.usefixtures("matmul_precision")
def test_a_novel(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """One file of running text, with its recipe; the vocabulary is smaller than the cutoffs."""
    lines = [f"It wasn't number {n}, the red-hot chapter." for n in range(300)]
    (tmp_path / "novel.txt").write_text("\n".join(lines), "utf-8")
    small = [override for override in TINY if not override.startswith(("data", "model="))]
    config = config_of(
        "experiment=own_text",
        f"data.path={tmp_path}/novel.txt",
        f"data.cache_dir={tmp_path}/cache",
        *small,
        "trainer.max_time=null",
    )
    caplog.set_level("INFO")
    perplexity = train(ChosenRun(config), tmp_path / "run")
    results = results_of(tmp_path / "run")
    line = ("It", "wasn", "'t", "number", "<unk>", ",", "the", "red", "@-@", "hot", "chapter", ".")
    length = len(line) + 1
    assert list(results["data"]["num_tokens"].values()) == [270 * length, 15 * length, 15 * length]
    assert results["data"]["vocabulary_size"] == length
    assert results["val"]["ppl"] == perplexity < 15
    for part in ("split: the end of the text", "data.tokenizer=none", "270 words"):
        assert part in caplog.text
    _, vocabulary = lmbench.load(tmp_path / "run")
    assert vocabulary.tokenizer.name == "moses"
    ids, unknown = encode_text("It wasn't red-hot.", vocabulary)
    assert len(ids) == 8
    assert not unknown


def test_help_names_groups_and_examples(tmp_path: Path):
    shown = finish(tmp_path, "--help")
    assert "model: awd_lstm, lstm" in shown
    assert "data: penn_treebank, synthetic, text, wikitext103, wikitext2" in shown
    assert "lmbench-train model=awd_lstm trainer.devices=1" in shown
    assert "lmbench-train -m " in shown


def test_a_run_with_an_unknown_class_is_not_begun(tmp_path: Path):
    """It could not be resumed later."""
    config = config_of(*TINY)
    config["callbacks"]["mine"] = {"_target_": "os.system", "command": "true"}
    with pytest.raises(UserError, match=r"os\.system"):
        train(ChosenRun(config), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("matmul_precision")
def test_a_run_without_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What ``train`` returns, which sweepers minimize, is the best validation perplexity."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    perplexity = train(ChosenRun(config_of(*TINY, "float32_matmul_precision=high")), tmp_path)
    results = results_of(tmp_path)
    assert results["environment"]["float32_matmul_precision"] == "high"
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    assert perplexity == results["val"]["ppl"]
    # Even 12 steps beat a guess among 41 words, and nothing beats the grammar itself.
    assert results["data"]["perplexity_floor"]["valid"] < perplexity < 41
    # The learning rate with all its digits, and the epoch whose weights were tested.
    metrics = rows_of(tmp_path / "metrics.csv")
    lrs = [float(row["lr"]) for row in metrics if row["lr"]]
    assert torch.tensor(lrs).tolist() != lrs  # in float32
    assert metrics[-1]["epoch"] == str(results["best_epoch"])
