"""``lmbench-evaluate`` from its config to the files in the run's directory."""

import json
import math
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import lmbench
from lmbench.callbacks.checkpoint_io import AtomicCheckpointIO
from lmbench.config import conf_dir
from lmbench.data.synthetic import make_corpus
from lmbench.errors import UserError
from lmbench.evaluate import evaluate
from lmbench.saved.checkpoint import read_checkpoint

MakeRun = Callable[..., Path]
NUM_TOKENS = 200
# Two columns of 128 targets, half of them burn-in, and a model that few steps at a time suit.
SMALL = ("evaluation.columns=2", "evaluation.burn_in=56", "evaluation.window=9")


def results_of(run: Path, name: str, *overrides: str) -> dict[str, Any]:
    """Evaluates, and reads what was written."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("evaluate", [f"run={run}", f"evaluation={name}", "device=cpu", *overrides])
    perplexity = evaluate(config, name)
    results = json.loads((run / f"evaluation-{name}-{config.split}.json").read_text("utf-8"))
    assert results["ppl"] == perplexity == math.exp(results["nll"])
    return results


@pytest.fixture(autouse=True)
def _precision(matmul_precision: None) -> None:
    """The command sets it for its process."""


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize(
    ("model", "precision"),
    [("lstm", "32-true"), ("awd_lstm", "32-true"), ("awd_lstm", "bf16-true")],
)
def test_standard_scores_the_best_checkpoint(
    make_run: MakeRun, model: str, precision: str, split: str
) -> None:
    """In float32 also where the weights are bfloat16, by which its results know them."""
    run = make_run(f"model={model}", "seed=4", f"trainer.precision={precision}")
    results = results_of(run, "standard", f"split={split}", "evaluation.columns=1")
    loaded, vocabulary = lmbench.load(run)
    corpus = make_corpus(
        num_words=40, **{f"num_{s}_tokens": 200 for s in ("train", "valid", "test")}
    )
    assert corpus.vocabulary == vocabulary
    tokens = torch.from_numpy(getattr(corpus, split).astype(np.int64))[:, None]
    with torch.no_grad():
        output = loaded.double()(tokens[:-1]).output
        log_probs = loaded.head.log_probs(output)[:, 0]
    expected = -log_probs[torch.arange(NUM_TOKENS - 1), tokens[1:, 0]].mean().item()
    assert results["nll"] == pytest.approx(expected, rel=1e-5)
    assert results["num_tokens"] == NUM_TOKENS - 1
    assert (results["model"], results["seed"], results["split"]) == (model, 4, split)
    assert results["corpus_sha256"] == corpus.sha256
    of_run = json.loads((run / "results.json").read_text("utf-8"))
    assert results["weights_sha256"] == of_run["weights_sha256"]
    assert results["evaluation"] == {
        "name": "standard",
        "protocol": "standard",
        "columns": 1,
        "burn_in": 512,
        "window": 70,
        "cache": None,
        "dynamic": None,
        "statistics": None,
    }
    assert results["without_cache"] is None
    assert results["tuned"] is None
    text = "".join(
        "\n" if word == "<eos>" else word + " " for word in vocabulary.decode(tokens[1:, 0])
    )
    bits = expected * (NUM_TOKENS - 1) / math.log(2) / len(text)
    assert results["bits_per_character"] == pytest.approx(bits, rel=1e-5)


def test_switched_off_all_ways_give_the_standard_result_to_the_last_bit(make_run: MakeRun) -> None:
    run = make_run("model=awd_lstm", "model/head=adaptive_softmax")
    standard = results_of(run, "standard", *SMALL)
    off = (
        ("cache", "evaluation.cache.interpolation=0"),
        ("dynamic", "evaluation.dynamic.lr=0"),
        ("dynamic_sgd", "evaluation.dynamic.lr=0"),
        ("dynamic_cache", "evaluation.dynamic.lr=0", "evaluation.cache.interpolation=0"),
    )
    for name, *switches in off:
        columns = ("evaluation.dynamic.statistics.columns=4",) if "dynamic" in name else ()
        results = results_of(run, name, *SMALL, *switches, *columns)
        assert results["nll"] == standard["nll"]
        assert results["perplexity_by"] == standard["perplexity_by"]


def test_the_cache_goes_on_top_of_dynamic_evaluation(make_run: MakeRun) -> None:
    run = make_run("model=lstm")
    options = ["evaluation.dynamic.statistics.columns=4", "evaluation.dynamic.lr=0.001"]
    dynamic = results_of(run, "dynamic", *options)
    both = results_of(run, "dynamic_cache", *options)
    assert both["without_cache"]["nll"] == dynamic["nll"]
    assert both["nll"] != dynamic["nll"]
    assert dynamic["nll"] != results_of(run, "standard", "evaluation.columns=1")["nll"]


def test_the_published_protocol_divides_by_the_tokens_read(make_run: MakeRun) -> None:
    run = make_run("model=lstm")
    standard = results_of(run, "standard", "evaluation.columns=1")
    published = results_of(run, "published")
    assert published["nll"] == pytest.approx(standard["nll"] * 199 / 200, rel=1e-12)
    assert published["num_tokens"] == 199
    valid = results_of(run, "published", "split=valid", "evaluation.save_tokens=true")
    assert valid["evaluation"]["columns"] == 10
    assert valid["num_tokens"] == 190
    record = pq.read_table(run / "evaluation-published-valid.parquet")
    assert record["position"].to_pylist() == [p for p in range(1, 200) if p % 20]


def test_tuning_looks_at_valid_alone(make_run: MakeRun) -> None:
    run = make_run("model=lstm")
    options = (
        "evaluation.tune=true",
        "evaluation.window=20",
        "evaluation.dynamic.statistics.columns=4",
        "evaluation.dynamic.grid.num_tokens=150",
        "evaluation.dynamic.grid.lrs=[1e-4,1e-3,1e-2]",
        "evaluation.cache.grid.windows=[50,100]",
        "evaluation.cache.grid.thetas=[0.1,0.5]",
        "evaluation.cache.grid.interpolations=[0.05,0.2]",
    )
    results = results_of(run, "dynamic_cache", *options)
    tuned, evaluation = results["tuned"], results["evaluation"]
    assert len(tuned["dynamic"]) == 3 + 4 - 1
    assert len(tuned["cache"]) == 2 * 2 * 2
    for kind in ("dynamic", "cache"):
        best = min(tuned[kind], key=lambda row: row["nll"])
        assert {name: best[name] for name in evaluation[kind]} == evaluation[kind]
    # The same settings given by hand give the same result.
    by_hand = [
        f"evaluation.{kind}.{name}={value}"
        for kind in ("dynamic", "cache")
        for name, value in evaluation[kind].items()
    ]
    again = results_of(run, "dynamic_cache", *options[1:3], *by_hand)
    assert again["nll"] == results["nll"]
    assert again["tuned"] is None
    # What was tried first came to what the first tokens of valid come to.
    first = tuned["dynamic"][0]
    tried = [f"evaluation.dynamic.{key}={value}" for key, value in first.items() if key != "nll"]
    results_of(run, "dynamic", *options[1:3], *tried, "split=valid", "evaluation.save_tokens=true")
    record = pq.read_table(run / "evaluation-dynamic-valid.parquet")
    log_probs = record["log_probability"].to_numpy()[: 150 - 1]
    assert tuned["num_tokens"] == 150
    assert first["nll"] == pytest.approx(-log_probs.mean(dtype=np.float64), rel=1e-5)
    # And so for the cache, over the dynamic evaluation that was found.
    first = tuned["cache"][0]
    tried = [f"evaluation.cache.{key}={value}" for key, value in first.items() if key != "nll"]
    found = [value for value in by_hand if value.startswith("evaluation.dynamic.")]
    of_valid = ("split=valid", "evaluation.save_tokens=true")
    results_of(run, "dynamic_cache", *options[1:3], *found, *tried, *of_valid)
    record = pq.read_table(run / "evaluation-dynamic_cache-valid.parquet")
    log_probs = record["log_probability"].to_numpy()[: 150 - 1]
    assert first["nll"] == pytest.approx(-log_probs.mean(dtype=np.float64), rel=1e-5)


@pytest.mark.parametrize("name", ["cache", "dynamic"])
def test_what_was_tried_are_evaluations_of_valid(make_run: MakeRun, name: str) -> None:
    run = make_run("model=lstm")
    options = ("evaluation.window=20",)
    if name == "dynamic":
        options += ("evaluation.dynamic.statistics.columns=4",)
        grid = (
            "evaluation.dynamic.grid.num_tokens=null",
            "evaluation.dynamic.grid.lrs=[1e-3,1e-4]",
        )
    else:
        grid = ("evaluation.cache.grid.windows=[50]", "evaluation.cache.grid.thetas=[0.1]")
    tuned = results_of(run, name, *options, *grid, "evaluation.tune=true")["tuned"]
    assert tuned["num_tokens"] is None
    for row in tuned[name][:3]:
        by_hand = [f"evaluation.{name}.{key}={value}" for key, value in row.items() if key != "nll"]
        alone = results_of(run, name, *options, *by_hand, "split=valid")
        assert row["nll"] == pytest.approx(alone["nll"], rel=1e-6)


def test_a_setting_that_breaks_the_model_is_tried_and_not_taken(make_run: MakeRun) -> None:
    run = make_run("model=lstm")
    grid = ("evaluation.dynamic.grid.lrs=[0.1,1e30]", "evaluation.dynamic.grid.decays=[0.0]")
    results = results_of(run, "dynamic_sgd", "evaluation.tune=true", "evaluation.window=20", *grid)
    assert results["evaluation"]["dynamic"]["lr"] == 0.1
    assert [row["lr"] for row in results["tuned"]["dynamic"]] == [0.1, 1e30]


@pytest.mark.parametrize("name", ["standard", "cache"])
def test_the_record_says_what_the_results_say(
    make_run: MakeRun, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = make_run("model=lstm")
    results = results_of(run, name, "evaluation.save_tokens=true", *SMALL)
    record = pq.read_table(run / f"evaluation-{name}-test.parquet")
    assert record["position"].to_pylist() == list(range(1, NUM_TOKENS))
    mean = -np.mean(record["log_probability"].to_numpy(), dtype=np.float64)
    assert mean == pytest.approx(results["nll"], rel=1e-6)
    lines = (run / f"evaluation-{name}-test.txt").read_text("ascii").splitlines()
    assert len(lines) == NUM_TOKENS - 1
    mean = -math.fsum(math.log(float(line)) for line in lines) / len(lines)
    assert mean == pytest.approx(results["nll"], rel=1e-6)
    results_of(run, name, *SMALL)  # without a record: the old one would be that of other results
    assert not list(run.glob("*.parquet"))
    assert not list(run.glob("*-test.txt"))
    assert caplog.text.count("of an evaluation before, is removed") == 2


def test_results_of_other_settings_are_not_replaced_in_silence(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run("model=lstm")
    for theta, num_warnings in ((0.5, 0), (0.5, 0), (0.8, 1)):
        results_of(run, "cache", *SMALL, f"evaluation.cache.theta={theta}")
        told = caplog.text.count("of an evaluation with other settings, is replaced")
        assert told == num_warnings


def test_gradient_statistics_are_computed_once(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = make_run("model=lstm")
    options = ("evaluation.window=20", "evaluation.dynamic.statistics.columns=4")
    results = results_of(run, "dynamic", *options)
    assert caplog.text.count("gradient statistics of train") == 1
    again = results_of(run, "dynamic", *options)
    assert caplog.text.count("gradient statistics of train") == 1
    assert again["nll"] == results["nll"]
    results_of(run, "dynamic", *options, "evaluation.dynamic.statistics.segments=1")
    assert caplog.text.count("gradient statistics of train") == 2


@pytest.mark.parametrize("change", ["window", "columns", "weights"])
def test_gradient_statistics_of_anything_else_are_not_used(
    make_run: MakeRun, tmp_path: Path, change: str
) -> None:
    run = make_run("model=lstm")
    options = {"window": 20, "dynamic.statistics.columns": 4, "dynamic.lr": 0.01}

    def nll(of: Path) -> float:
        given = [f"evaluation.{key}={value}" for key, value in options.items()]
        return results_of(of, "dynamic", *given)["nll"]

    before = nll(run)
    if change == "weights":
        path = run / "checkpoints/best.ckpt"
        checkpoint = read_checkpoint(path)
        checkpoint["state_dict"]["model.head.bias"] += torch.linspace(0, 1, 41)
        AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    else:
        options |= {"window": 9} if change == "window" else {"dynamic.statistics.columns": 8}
    fresh = Path(shutil.copytree(run, tmp_path / "fresh"))
    (statistics,) = (fresh / "checkpoints").glob("*.safetensors")
    statistics.unlink()
    after = nll(run)
    assert after == nll(fresh) != before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["split=train"], r"^split=train must be valid or test"),
        (["data.path=/nowhere"], r"^data.path=/nowhere: the run's data .* has no path"),
        (["device=tpu"], r"^device=tpu cannot be used: "),
        (["float32_matmul_precision=fast"], r"^float32_matmul_precision='fast'"),
        (["evaluation.tune=true"], r"nothing to tune"),
        (["evaluation.tune=no"], r"^evaluation.tune='no' has the wrong type"),
        (["evaluation.save_tokens=1"], r"^evaluation.save_tokens=1 has the wrong type"),
        (["~evaluation.window"], r"^evaluation.window is missing"),
        (["evaluation=cache", "~evaluation.cache.grid"], r"^evaluation.cache.grid is missing"),
        (
            ["evaluation=cache", "evaluation.cache.grid=null"],
            r"^evaluation.cache.grid=None has the",
        ),
        (
            ["evaluation=dynamic", "evaluation.dynamic.statistics=null"],
            r"^evaluation.dynamic.statistics=None has the wrong type",
        ),
        (
            ["evaluation=dynamic"],
            r"^evaluation.dynamic.statistics.columns=100 are too many .* 66 or",
        ),
        (
            ["evaluation=cache", "evaluation.cache.warmup=true", "evaluation.burn_in=5"],
            r"^evaluation.cache.warmup=true .* evaluation.columns=1, evaluation.window=2000",
        ),
        (
            ["evaluation=dynamic", "evaluation.columns=2", "evaluation.burn_in=5"],
            r"^Dynamic evaluation in 2 columns .* evaluation\.columns=1",
        ),
        (["+columns=1"], r"^columns is read by nothing\. There are run, split, data"),
        (["+evaluation.theta=1"], r"^evaluation\.theta is read by nothing"),
        (
            ["evaluation=dynamic", "+evaluation.dynamic.statistics.foo=1"],
            r"^evaluation\.dynamic\.statistics\.foo is read by nothing",
        ),
        (
            ["evaluation=cache", "evaluation.cache.theta=1e40"],
            r"targets are left without a probability.*evaluation\.cache\.theta lower",
        ),
        (["evaluation.columns=0"], r"^evaluation.columns must be at least 1, not 0"),
        (["evaluation.columns=x"], r"^evaluation.columns='x' has the wrong type"),
        (["evaluation.protocol=mine"], r"^evaluation.protocol must be one of standard, published"),
        (["evaluation=cache", "evaluation.cache.theta=x"], r"^evaluation.cache.theta='x' has the"),
        (["evaluation=cache", "evaluation.cache.window=0"], r"^evaluation.cache.window must be a"),
        (
            ["evaluation=cache", "evaluation.cache.grid.thetas=[]"],
            r"^evaluation.cache.grid.thetas must hold",
        ),
        (["evaluation=dynamic", "evaluation.dynamic.lr=-1"], r"^evaluation.dynamic.lr must be"),
        (
            ["evaluation=dynamic", "evaluation.dynamic.statistics.columns=0"],
            r"^evaluation.dynamic.statistics.columns must be at least 1",
        ),
        (
            ["evaluation=dynamic_sgd", "evaluation.dynamic.lr=1e9"],
            r"targets are left without a probability.*evaluation.dynamic.lr lower",
        ),
    ],
)
def test_mistakes_are_told_in_a_sentence_and_leave_nothing(
    make_run: MakeRun, overrides: list[str], message: str
) -> None:
    run = make_run("model=lstm")
    before = sorted(path.name for path in run.rglob("*"))
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("evaluate", [f"run={run}", *overrides])
    with pytest.raises(UserError, match=message):
        evaluate(config, "standard")
    assert sorted(path.name for path in run.rglob("*")) == before


def test_a_run_that_is_named_by_a_number_is_found(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("model=lstm").rename(tmp_path / "0")
    monkeypatch.chdir(tmp_path)
    assert results_of(Path("0"), "standard")["split"] == "test"


def test_a_run_that_cannot_be_written_is_refused_before_the_work(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("model=lstm")
    (run / "checkpoints/best.ckpt").unlink()  # which would be told later
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != run and access(path, mode))
    with pytest.raises(UserError, match=r"cannot be written.* Copy the run to a folder of your"):
        results_of(run, "standard")


def test_results_that_cannot_be_written_are_shown(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("model=lstm")
    results = results_of(run, "standard")
    (run / "evaluation-standard-test.json").unlink()
    (run / "evaluation-standard-test.json").mkdir()  # which no file can replace
    capsys.readouterr()
    with pytest.raises(OSError, match="evaluation-standard-test"):
        results_of(run, "standard")
    assert f"{results['ppl']:,.2f}" in capsys.readouterr().out


def test_results_that_cannot_be_shown_are_written(make_run: MakeRun, full_stdout: Callable) -> None:
    run = make_run("model=lstm")
    expected = rf"^stdout cannot .* The results are in {run}\.$"
    with full_stdout(), pytest.raises(UserError, match=expected):
        results_of(run, "standard")
    results = json.loads((run / "evaluation-standard-test.json").read_text("utf-8"))
    assert results["ppl"] == results_of(run, "standard")["ppl"]


def test_results_that_nobody_reads_are_written(make_run: MakeRun) -> None:
    run = make_run("model=lstm")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread, redirect_stdout(unread), pytest.raises(SystemExit):
        results_of(run, "standard")
    assert (run / "evaluation-standard-test.json").is_file()


def test_columns_are_those_that_were_read(make_run: MakeRun) -> None:
    """A split too short for two columns and their burn-in is read in one."""
    assert results_of(make_run("model=lstm"), "standard")["evaluation"]["columns"] == 1


def test_another_corpus_is_refused(make_run: MakeRun) -> None:
    run = make_run("model=lstm")
    config = OmegaConf.load(run / "config.yaml")
    config.data.seed = 9
    OmegaConf.save(config, run / "config.yaml")
    with pytest.raises(UserError, match="was trained on a corpus with sha256"):
        results_of(run, "standard")


def test_a_link_in_the_run_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("model=lstm")
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="checkpoints is a link"):
        results_of(run, "dynamic")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["best.ckpt"]


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the directory of a run"):
        results_of(tmp_path, "standard")


def command(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [Path(sysconfig.get_path("scripts"), "lmbench-evaluate"), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_help_names_every_evaluation(tmp_path: Path) -> None:
    result = command(tmp_path, "--help")
    assert result.returncode == 0
    listed = result.stdout.partition("== Choose")[2].partition("== Config")[0].splitlines()[1:]
    names = {line.split()[0] for line in listed if line}
    assert names == {path.stem for path in (conf_dir() / "evaluation").glob("*.yaml")}


@pytest.mark.slow
def test_the_command_writes_into_the_run_alone(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("model=lstm")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = command(elsewhere, f"run={run}", "split=valid", "evaluation=cache")
    assert result.returncode == 0, result.stderr
    assert "without the cache" in result.stdout
    assert (run / "evaluation-cache-valid.json").is_file()
    assert not list(elsewhere.iterdir())
    sweep = command(elsewhere, "-m", f"run={run}", "split=valid,test")
    assert sweep.returncode == 0, sweep.stderr
    assert len(list(run.glob("evaluation-standard-*.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Set run=RUN_DIR, the directory of the run to evaluate."),
        (("run=nowhere",), "nowhere is not the directory of a run: it has no config.yaml."),
        (("run=.", "split=train"), "split=train must be valid or test."),
    ],
)
def test_the_command_ends_with_a_paragraph(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = command(tmp_path, *arguments)
    assert result.returncode == 1
    first, *lines, last = result.stderr.strip().splitlines()
    assert first.startswith("Error executing job with overrides: ")
    assert last.startswith("Set the environment variable HYDRA_FULL_ERROR=1")
    assert "\n".join(lines).strip() == message
    assert not list(tmp_path.iterdir())
