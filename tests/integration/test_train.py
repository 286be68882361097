"""``lmbench-train`` from the command line to its run directory, on corpora of a few lines."""

import csv
import json
import math
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.testing import assert_close

from lmbench import build
from lmbench.config import conf_dir
from lmbench.train import train

COMMAND = Path(sysconfig.get_path("scripts"), "lmbench-train")
NUM_STEPS = 12
TINY = (
    "model=lstm",
    "model.embedding_size=8",
    "model.core.hidden_size=12",
    "batching.batch_size=4",
    "batching.bptt=5",
    "evaluation.columns=1",
    "trainer.accelerator=cpu",
    f"trainer.max_steps={NUM_STEPS}",
    "trainer.log_every_n_steps=2",
)
SYNTHETIC = (
    "data=synthetic",
    "data.num_words=40",
    "data.num_train_tokens=2000",
    "data.num_valid_tokens=300",
    "data.num_test_tokens=200",
)
# Embedding (tied to the softmax) of 40 words and <eos>, two layers 8 → 12 → 8, softmax bias.
NUM_PARAMETERS = 41 * 8 + sum(4 * h * (i + h) + 8 * h for i, h in ((8, 12), (12, 8))) + 41


def command(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    folder.mkdir(parents=True, exist_ok=True)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HYDRA_")}
    return subprocess.run(
        [COMMAND, *arguments],
        cwd=folder,
        env=inherited | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def config_of(run_dir: Path) -> DictConfig:
    config = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(config, DictConfig)
    return config


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the one run that most tests here look at."""
    folder = tmp_path_factory.mktemp("run")
    result = command(folder, *SYNTHETIC, *TINY, "seed=3")
    assert result.returncode == 0, result.stderr
    assert "perplexity" in result.stdout
    assert "floor" in result.stdout
    (run_dir,) = folder.glob("outputs/*/*")
    return run_dir


@pytest.mark.slow
def test_the_run_directory_holds_what_it_should(run_dir: Path):
    names = ("config.yaml", "metrics.csv", "timing.csv", "results.json", "train.log", ".lock")
    folders = ("checkpoints", "tensorboard", ".hydra")
    assert {path.name for path in run_dir.iterdir()} == {*names, *folders}
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert str(run_dir) in (run_dir / "train.log").read_text("utf-8")


@pytest.mark.slow
def test_the_config_is_resolved_and_builds_the_same_objects(run_dir: Path, tmp_path: Path):
    text = (run_dir / "config.yaml").read_text("utf-8")
    assert "${" not in text
    again = config_of(run_dir)
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        composed = compose("train", [*SYNTHETIC, *TINY, "seed=3"])
    expected = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(expected, dict)
    # How a run is begun from another one, or gone on with, is no part of it.
    assert (expected.pop("resume"), expected.pop("sweep_resume")) == ("???", False)
    assert expected.pop("init_changes") == {}
    assert again == expected
    model = build.model(again, 41)
    checkpoint = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)
    build.module(again, model).load_state_dict(checkpoint["state_dict"])
    assert build.trainer(again, tmp_path).max_steps == NUM_STEPS


@pytest.mark.slow
def test_results_are_as_the_contract_says(run_dir: Path):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no plain JSON")

    results = json.loads((run_dir / "results.json").read_text("utf-8"), parse_constant=refuse)
    config = config_of(run_dir)
    corpus = build.corpus(config)
    assert set(results) == {
        "lmbench_version",
        "model",
        "num_parameters",
        "seed",
        "precision",
        "data",
        "best_epoch",
        "evaluation",
        "val",
        "test",
        "weights_sha256",
        "nt_asgd",
        "train",
        "environment",
    }
    best = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    named = {key.removeprefix("model."): value for key, value in best.items()}
    model = build.model(config, len(corpus.vocabulary))
    model.load_state_dict(named)
    assert results["weights_sha256"] == model.weights_sha256()
    known = ("model", "num_parameters", "seed", "precision", "best_epoch", "nt_asgd")
    assert [results[key] for key in known] == [
        "lstm",
        NUM_PARAMETERS,
        3,
        "32-true",
        0,
        {"triggered_epoch": None},
    ]
    assert results["data"] == {
        "name": "synthetic",
        "vocabulary_size": 41,
        "num_tokens": {"train": 2000, "valid": 300, "test": 200},
        "sha256": corpus.sha256,
        "perplexity_floor": corpus.perplexity_floor,
    }
    assert results["evaluation"] == {"protocol": "standard", "columns": 1, "burn_in": 512}
    # Of N tokens all but the first are scored.
    for split, num_tokens in (("val", 299), ("test", 199)):
        score = results[split]
        assert set(score) == {"nll", "ppl", "num_tokens"}
        assert score["num_tokens"] == num_tokens
        assert score["ppl"] == pytest.approx(math.exp(score["nll"]))
    measured = results["train"]
    tokens = NUM_STEPS * 4 * 5
    counts = {"epochs": tokens / 2000, "steps": NUM_STEPS, "tokens": tokens}
    assert {key: measured[key] for key in counts} == counts
    for key in ("seconds", "tokens_per_second", "peak_memory_bytes"):
        assert measured[key] > 0
    assert set(measured) == {*counts, "seconds", "tokens_per_second", "peak_memory_bytes"}
    assert set(results["environment"]) == {
        "torch",
        "lightning",
        "device",
        "num_threads",
        "float32_matmul_precision",
    }
    assert results["environment"]["num_threads"] == 1


@pytest.mark.slow
def test_the_best_checkpoint_gives_the_perplexity_that_is_reported(run_dir: Path):
    config = config_of(run_dir)
    corpus = build.corpus(config)
    checkpoint = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)
    saved = checkpoint["LanguageModelDataModule"]
    assert saved["sha256"] == corpus.sha256
    assert tuple(saved["words"]) == corpus.vocabulary.words
    module = build.module(config, build.model(config, 41))
    module.load_state_dict(checkpoint["state_dict"])
    model = module.model.double().eval()
    results = json.loads((run_dir / "results.json").read_text("utf-8"))
    for split, ids in (("val", corpus.valid), ("test", corpus.test)):
        stream = torch.tensor(ids).long()[:, None]  # (N, 1), all of it in one window
        with torch.no_grad():
            log_probs = model.head.log_probs(model(stream[:-1]).output)
        nll = -log_probs.gather(-1, stream[1:, :, None]).mean().item()
        assert results[split]["nll"] == pytest.approx(nll, rel=1e-5)


@pytest.mark.slow
def test_metrics_and_timing_are_apart(run_dir: Path):
    metrics, timing = rows_of(run_dir / "metrics.csv"), rows_of(run_dir / "timing.csv")
    stages = {
        f"{stage}/{metric}" for stage in ("train", "val", "test") for metric in ("nll", "ppl")
    }
    assert set(metrics[0]) == {"step", "epoch", "lr"} | stages
    assert set(timing[0]) == {
        "step",
        "epoch",
        "train/tokens_per_second",
        "train/peak_memory_bytes",
        "train/seconds",
    }
    # The time of each validation, in its own row.
    done = {row["step"]: float(row["train/seconds"]) for row in timing if row["train/seconds"]}
    assert list(done) == [row["step"] for row in metrics if row["val/nll"]]
    assert list(done.values()) == sorted(done.values())
    assert min(done.values()) > 0
    assert len([row for row in metrics if row["train/nll"]]) == NUM_STEPS // 2
    results = json.loads((run_dir / "results.json").read_text("utf-8"))
    (valid,) = [row for row in metrics if row["val/nll"]]
    (test,) = [row for row in metrics if row["test/nll"]]
    assert float(valid["val/nll"]) == pytest.approx(results["val"]["nll"], rel=1e-12)
    assert float(test["test/nll"]) == pytest.approx(results["test"]["nll"], rel=1e-12)


@pytest.mark.slow
def test_tensorboard_has_scalars_and_hyperparameters(run_dir: Path):
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    scalars = {"train/nll", "val/ppl", "test/ppl", "lr", "train/tokens_per_second"}
    assert scalars <= set(events.Tags()["scalars"])
    results = json.loads((run_dir / "results.json").read_text("utf-8"))
    assert events.Scalars("val/ppl")[-1].value == pytest.approx(results["val"]["ppl"], rel=1e-6)
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    hyperparameters = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hyperparameters["model.core.hidden_size"].number_value == 12
    optimizer = config_of(run_dir).optimizer
    assert hyperparameters["optimizer._target_"].string_value == optimizer._target_


@pytest.mark.slow
def test_the_seed_alone_decides_the_metrics(run_dir: Path, tmp_path: Path):
    result = command(tmp_path, "-m", *SYNTHETIC, *TINY, "seed=3,4")
    assert result.returncode == 0, result.stderr
    (sweep,) = tmp_path.glob("multirun/*/*")
    metrics = (run_dir / "metrics.csv").read_bytes()
    assert (sweep / "0/metrics.csv").read_bytes() == metrics
    assert (sweep / "1/metrics.csv").read_bytes() != metrics


@pytest.mark.slow
def test_awd_lstm_repeats_itself_to_the_last_bit(tmp_path: Path):
    """With every dropout, variable windows and averaged SGD."""
    averaging = ("trainer.max_steps=-1", "trainer.max_epochs=2")
    start = ("callbacks.nt_asgd.average_from_start=true", "batching.batch_size=20")
    arguments = (*SYNTHETIC, *TINY[1:], "model=awd_lstm", *averaging, *start)
    result = command(tmp_path, "-m", *arguments, "seed=3", "trainer.limit_val_batches=30,31")
    assert result.returncode == 0, result.stderr
    (sweep,) = tmp_path.glob("multirun/*/*")
    jobs = [sweep / "0", sweep / "1"]
    metrics = [(job / "metrics.csv").read_bytes() for job in jobs]
    assert metrics[0] == metrics[1]
    assert len(rows_of(jobs[0] / "metrics.csv")) > 4
    first, second = (
        torch.load(job / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for job in jobs
    )
    assert_close(second, first, rtol=0, atol=0)


@pytest.mark.slow
def test_finetuning_goes_on_from_a_runs_best_weights(run_dir: Path, tmp_path: Path):
    """Of an LSTM, with the lr so small that the weights stay what they are."""
    arguments = ("experiment=finetune", f"init_from='{run_dir}'", "optimizer.lr=1e-12")
    more = ("trainer.max_steps=3", "trainer.accelerator=cpu", "evaluation.columns=1")
    result = command(tmp_path, *arguments, *more, "batching.batch_size=2")
    assert result.returncode == 0, result.stderr
    (finetuned,) = tmp_path.glob("outputs/*/*")
    before, after = (json.loads((d / "results.json").read_text()) for d in (run_dir, finetuned))
    assert after["test"]["nll"] == pytest.approx(before["test"]["nll"], rel=1e-6)
    assert after["data"] == before["data"]
    assert after["num_parameters"] == NUM_PARAMETERS
    assert after["init_from"] == str(run_dir)
    assert "init_from" not in before
    config, of_run = config_of(finetuned), config_of(run_dir)
    assert (config.model, config.data) == (of_run.model, of_run.data)
    assert (config.batching.batch_size, config.batching.bptt) == (2, of_run.batching.bptt)
    assert config.optimizer._target_ == "lmbench.optim.ASGD"
    optimizer = torch.load(finetuned / "checkpoints/last.ckpt", weights_only=True)
    assert all("ax" in state for state in optimizer["optimizer_states"][0]["state"].values())

    # Killed before its first checkpoint, it starts over from the same weights.
    again = tmp_path / "again"
    again.mkdir()
    train(config, again, resumed_with=[])
    results = json.loads((again / "results.json").read_text())
    assert results["test"]["nll"] == pytest.approx(before["test"]["nll"], rel=1e-6)


@pytest.mark.slow
def test_weights_go_to_no_other_model_or_corpus(run_dir: Path, tmp_path: Path):
    start = ("experiment=finetune", f"init_from='{run_dir}'", "trainer.accelerator=cpu")
    for change, message in (
        ("model.core.hidden_size=13", "do not fit the model"),
        ("+data.num_train_tokens=2100", "was trained on a corpus with sha256"),
        ("model=lstm", "does not go with init_from"),
    ):
        result = command(tmp_path, *start, change)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert message in result.stderr


@pytest.mark.slow
def test_each_model_of_a_sweep_trains_with_its_recipe(tmp_path: Path):
    result = command(tmp_path, "-m", *SYNTHETIC, *TINY[1:], "model=lstm,awd_lstm")
    assert result.returncode == 0, result.stderr
    (sweep,) = tmp_path.glob("multirun/*/*")
    results = [json.loads((sweep / f"{job}/results.json").read_text("utf-8")) for job in range(2)]
    assert [job["model"] for job in results] == ["lstm", "awd_lstm"]
    configs = [config_of(sweep / str(job)) for job in range(2)]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        alone = [compose("train", [f"model={job['model']}"]) for job in results]
    assert [config.optimizer for config in configs] == [config.optimizer for config in alone]
    assert configs[0].optimizer != configs[1].optimizer
    assert ["nt_asgd" in config.callbacks for config in configs] == [False, True]
    assert results[0]["num_parameters"] == NUM_PARAMETERS


@pytest.mark.slow
def test_a_second_run_leaves_the_first_alone(tmp_path: Path):
    arguments = (*SYNTHETIC, *TINY, f"hydra.run.dir='{tmp_path}/one run'")
    first = command(tmp_path, *arguments)
    assert first.returncode == 0, first.stderr
    before = files_of(tmp_path / "one run")
    second = command(tmp_path, *arguments, "seed=9")
    assert second.returncode == 1
    assert "Traceback" not in second.stderr
    assert "holds a run already" in second.stderr
    after = files_of(tmp_path / "one run")
    # Hydra rewrites its own folder and opens the log before lmbench has a say.
    ours = [name for name in before if not name.startswith(".hydra/") and name != "train.log"]
    assert {name: after[name] for name in ours} == {name: before[name] for name in ours}
    assert set(after) == set(before)


@pytest.mark.slow
def test_a_corpus_of_ones_own(tmp_path: Path):
    folder = tmp_path / "Wörter und Sätze, 日本語"
    folder.mkdir()
    # Six words and <eos>, in another order in each split.
    for split, text in {
        "train": "naïve 猫 sat on the mat\n" * 20,
        "valid": "the mat sat on naïve 猫\n" * 4,
        "test": "on the mat\n\n 猫 sat\n" * 5,
    }.items():
        (folder / f"{split}.txt").write_text(text, "utf-8")
    place = (f"data.path='{folder}'", f"data.cache_dir='{tmp_path}/ein Cache'")
    result = command(tmp_path, "data=text", *place, *TINY, "batching.batch_size=2")
    assert result.returncode == 0, result.stderr
    (run_dir,) = tmp_path.glob("outputs/*/*")
    data = json.loads((run_dir / "results.json").read_text("utf-8"))["data"]
    assert data["name"] == "text"
    assert data["vocabulary_size"] == 7
    assert data["num_tokens"] == {"train": 20 * 7, "valid": 4 * 7, "test": 5 * 8}
    checkpoint = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True)
    words = checkpoint["LanguageModelDataModule"]["words"]
    assert words == ["naïve", "猫", "sat", "on", "the", "mat", "<eos>"]


def test_help_names_groups_and_examples(tmp_path: Path):
    result = command(tmp_path, "--help")
    assert result.returncode == 0
    assert "model: awd_lstm, lstm" in result.stdout
    assert "data: penn_treebank, synthetic, text, wikitext2" in result.stdout
    assert "lmbench-train model=awd_lstm trainer.devices=1" in result.stdout
    assert "lmbench-train -m " in result.stdout


@pytest.mark.slow
def test_the_config_is_printed_as_yaml(tmp_path: Path):
    result = command(tmp_path, "--cfg", "job", "model=awd_lstm", "optimizer.lr=0.5")
    assert result.returncode == 0
    printed = OmegaConf.create(result.stdout)
    assert printed.model.core.hidden_size == 1150
    assert printed.optimizer.lr == 0.5
    assert not list(tmp_path.glob("outputs"))


@pytest.mark.usefixtures("matmul_precision")
def test_a_run_without_the_command(tmp_path: Path):
    """What ``train`` returns, which sweepers minimize, is the best validation perplexity."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("train", [*SYNTHETIC, *TINY, "float32_matmul_precision=high"])
    perplexity = train(config, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert results["environment"]["float32_matmul_precision"] == "high"
    assert perplexity == pytest.approx(results["val"]["ppl"])
    # Even 12 steps beat a guess among 41 words, and nothing beats the grammar itself.
    assert results["data"]["perplexity_floor"]["valid"] < perplexity < 41
