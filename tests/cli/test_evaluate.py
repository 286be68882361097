"""``lmbench-evaluate`` from its config to the files in the run's directory."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import trainings
from omegaconf import OmegaConf
from small import composed, exact_log_probs

import lmbench
from lmbench.cli._run_arguments import require_folders, with_run
from lmbench.cli.evaluate import evaluate, evaluation_name
from lmbench.data.synthetic import make_corpus
from lmbench.errors import UserError
from lmbench.evaluation.evaluator import Evaluator, RescoringMode
from lmbench.evaluation.reading import Reading
from lmbench.evaluation.tuning import tune_in_turn

MakeRun = Callable[..., Path]
command = partial(trainings.command, command="lmbench-evaluate")
NUM_TOKENS = 200
# Two columns of 128 targets, half of them burn-in, in short windows, which suit a small model.
SMALL = ("evaluation.columns=2", "evaluation.burn_in=56", "evaluation.window=9")


def results_of(run: Path, name: str, *overrides: str) -> dict[str, Any]:
    """Evaluates, and reads what was written."""
    own = (f"run={run}", "device=cpu", f"evaluation={name}")
    config = composed(*own, *overrides, name="evaluate")
    perplexity = evaluate(config, name)
    results = json.loads((run / f"evaluation-{name}-{config.split}.json").read_text("utf-8"))
    assert results["ppl"] == perplexity == math.exp(results["nll"])
    return results


def settings(kind: str, values: dict[str, Any]) -> list[str]:
    """Overrides for the settings that a mode was tuned to or tried with."""
    return [f"evaluation.{kind}.{key}={value}" for key, value in values.items() if key != "nll"]


@pytest.fixture(autouse=True)
def _precision(matmul_precision: None) -> None:
    """The command sets the precision for the whole process."""


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    return make_run("model=lstm")


@pytest.mark.parametrize(
    ("model", "precision", "split"),
    [("lstm", "32-true", "valid"), ("awd_lstm", "bf16-true", "test")],
)
def test_standard_scores_the_best_checkpoint(
    make_run: MakeRun, model: str, precision: str, split: str
) -> None:
    """In float32 even if the weights are bfloat16, whose hash the results hold."""
    run = make_run(f"model={model}", "seed=4", f"trainer.precision={precision}")
    results = results_of(run, "standard", f"split={split}", "evaluation.columns=1")
    sizes = {f"num_{name}_tokens": 200 for name in ("train", "valid", "test")}
    corpus = make_corpus(num_words=40, **sizes)
    log_probs = exact_log_probs(lmbench.load(run).model, getattr(corpus, split))
    assert results["nll"] == pytest.approx(-log_probs.mean().item(), rel=1e-5)
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
    }
    assert results["tuned"] is None


def test_a_mode_switched_off_gives_the_standard_result_to_the_last_bit(make_run: MakeRun) -> None:
    run = make_run("model=awd_lstm", "model/head=adaptive_softmax")
    standard = results_of(run, "standard", *SMALL)
    off = (
        ("cache", "evaluation.cache.interpolation=0"),
        ("dynamic", "evaluation.dynamic.lr=0"),
        ("dynamic_sgd", "evaluation.dynamic.lr=0"),
        ("dynamic_cache", "evaluation.dynamic.lr=0", "evaluation.cache.interpolation=0"),
        ("dynamic_cache", "evaluation.dynamic.lr=0", "evaluation.cache=null"),
        ("temperature", "evaluation.temperature.value=1"),
        ("mc_dropout", "evaluation.mc_dropout.multiplier=0", "evaluation.mc_dropout.samples=1"),
    )
    for name, *switches in off:
        columns = ("evaluation.dynamic.statistics.columns=4",) if "dynamic" in name else ()
        results = results_of(run, name, *SMALL, *switches, *columns)
        assert results["nll"] == standard["nll"]
        assert results["perplexity_by"] == standard["perplexity_by"]


def test_the_cache_goes_on_top_of_dynamic_evaluation(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    options = ["evaluation.dynamic.statistics.columns=4", "evaluation.dynamic.lr=0.001"]
    dynamic = results_of(run, "dynamic", *options)
    both = results_of(run, "dynamic_cache", *options)
    assert both["without_cache"]["nll"] == dynamic["nll"]
    assert both["nll"] != dynamic["nll"]
    assert dynamic["nll"] != results_of(run, "standard", "evaluation.columns=1")["nll"]
    assert caplog.text.count("gradient statistics of train") == 1  # the run keeps them


def test_the_published_protocol_divides_by_the_tokens_read(run: Path) -> None:
    standard = results_of(run, "standard", "evaluation.columns=1")
    published = results_of(run, "awd_lstm_lm")
    assert published["nll"] == pytest.approx(standard["nll"] * 199 / 200, rel=1e-12)
    assert published["num_tokens"] == 199
    valid = results_of(run, "awd_lstm_lm", "split=valid", "evaluation.save_tokens=true")
    assert valid["evaluation"]["columns"] == 10
    assert valid["num_tokens"] == 190
    record = pq.read_table(run / "evaluation-awd_lstm_lm-valid.parquet")
    assert record["position"].to_pylist() == [p for p in range(1, 200) if p % 20]


def test_tuning_uses_the_valid_split_alone(run: Path) -> None:
    options = (
        "evaluation.tune=true",
        "evaluation.window=20",
        "evaluation.dynamic.statistics.columns=4",
        "evaluation.dynamic.grid.num_tokens=150",
        "evaluation.dynamic.grid.lrs=[1e-4,1e-3,1e38]",
        "evaluation.cache.grid.windows=[50,100]",
        "evaluation.cache.grid.thetas=[0.1,0.5]",
        "evaluation.cache.grid.interpolations=[0.05,0.2]",
    )
    results = results_of(run, "dynamic_cache", *options)
    tuned, evaluation = results["tuned"], results["evaluation"]
    assert len(tuned["dynamic"]) == 3 + 4 - 1
    assert tuned["dynamic"].pop(2)["nll"] is None  # it breaks the model
    assert len(tuned["cache"]) == 2 * 2 * 2
    for kind in ("dynamic", "cache"):
        best = min(tuned[kind], key=lambda row: row["nll"])
        assert {name: best[name] for name in evaluation[kind]} == evaluation[kind]
    # The same settings given by hand give the same result.
    found = {kind: settings(kind, evaluation[kind]) for kind in ("dynamic", "cache")}
    by_hand = [*found["dynamic"], *found["cache"]]
    again = results_of(run, "dynamic_cache", *options[1:3], *by_hand)
    assert again["nll"] == results["nll"]
    assert again["tuned"] is None
    # The first settings tried scored what the first tokens of valid score; so did the cache's,
    # on top of the dynamic evaluation that was found.
    assert tuned["num_tokens"] == 150
    for name, others in (("dynamic", []), ("dynamic_cache", found["dynamic"])):
        kind = name.removeprefix("dynamic_")
        first = tuned[kind][0]
        of_valid = (*settings(kind, first), "split=valid", "evaluation.save_tokens=true")
        results_of(run, name, *options[1:3], *others, *of_valid)
        record = pq.read_table(run / f"evaluation-{name}-valid.parquet")
        log_probs = record["log_probability"].to_numpy()[: 150 - 1]
        assert first["nll"] == pytest.approx(-log_probs.mean(dtype=np.float64), rel=1e-5)


@pytest.mark.parametrize("name", ["cache", "dynamic_sgd", "mc_dropout"])
def test_both_splits_get_what_each_gets_alone(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are tuned once."""
    num_tunings = 0
    tune = Evaluator.tune

    def counted(evaluator: Evaluator) -> dict[str, Any]:
        nonlocal num_tunings
        num_tunings += 1
        return tune(evaluator)

    monkeypatch.setattr(Evaluator, "tune", counted)
    key = name.removesuffix("_sgd")
    grid = {
        "cache": "thetas=[0.1,0.5]",
        "dynamic": "lrs=[0.01,0.1]",
        "mc_dropout": "multipliers=[0.3]",
    }
    options = ("evaluation.tune=true", f"evaluation.{key}.grid.{grid[key]}")
    options += ("evaluation.mc_dropout.samples=2",) if key == "mc_dropout" else ()
    alone = {
        split: results_of(run, name, f"split={split}", *options) for split in ("valid", "test")
    }
    assert num_tunings == 2
    own = (f"run={run}", "device=cpu", f"evaluation={name}", "split=[valid,test]")
    assert evaluate(composed(*own, *options, name="evaluate"), name) == alone["test"]["ppl"]
    assert num_tunings == 3
    for split, expected in alone.items():
        found = json.loads((run / f"evaluation-{name}-{split}.json").read_text("utf-8"))
        times = {key for key in found if key.endswith("seconds")}
        assert {key: found[key] for key in found.keys() - times} == {
            key: expected[key] for key in expected.keys() - times
        }


def test_all_modes_are_tuned_on_as_many_tokens_as_the_least_allows(run: Path) -> None:
    options = (
        "evaluation.tune=true",
        "evaluation.window=20",
        "evaluation.dynamic.statistics.columns=4",
        "evaluation.dynamic.grid.num_tokens=150",
        "evaluation.dynamic.grid.lrs=[1e-4]",
        "+evaluation.cache.grid.num_tokens=100",
        "evaluation.cache.grid.windows=[50]",
        "evaluation.cache.grid.thetas=[0.1]",
    )
    assert results_of(run, "dynamic_cache", *options)["tuned"]["num_tokens"] == 100


def test_modes_can_be_combined_in_any_order(run: Path) -> None:
    one = composed("evaluation=[dynamic,cache,temperature]", name="evaluate").evaluation
    other = composed("evaluation=[temperature,dynamic_cache]", name="evaluate").evaluation
    assert one == other
    assert (one.columns, one.window) == (1, 5)
    assert (
        evaluation_name(["evaluation=[dynamic,cache,temperature]"]) == "dynamic_cache_temperature"
    )
    name = "[temperature,mc_dropout,cache]"
    options = (
        "evaluation.tune=true",
        "evaluation.temperature.grid.values=[0.9,3.0,9.0]",
        "evaluation.mc_dropout.samples=2",
        "evaluation.mc_dropout.grid.multipliers=[0.1,0.4]",
        "evaluation.mc_dropout.grid.num_tokens=150",
        "evaluation.cache.grid.thetas=[0.1]",
    )
    results = results_of(run, name, "split=valid", *options)
    tuned, evaluation = results["tuned"], results["evaluation"]
    assert [row["value"] for row in tuned["temperature"]] == [0.9, 3.0, 9.0]
    assert [row["multiplier"] for row in tuned["mc_dropout"]] == [0.1, 0.4]
    assert tuned["num_tokens"] == 150
    for kind in ("temperature", "mc_dropout"):
        best = min(tuned[kind], key=lambda row: row["nll"])
        assert {key: best[key] for key in evaluation[kind]} == evaluation[kind]
    found = [
        item for kind in tuned if kind != "num_tokens" for item in settings(kind, evaluation[kind])
    ]
    assert results_of(run, name, "split=valid", *found)["nll"] == results["nll"]


def test_tuning_on_all_of_a_short_split_is_told_as_such(run: Path) -> None:
    assert composed(
        "evaluation=temperature", name="evaluate"
    ).evaluation.temperature.grid.num_tokens
    results = results_of(run, "temperature", "split=valid", "evaluation.tune=true")
    assert results["tuned"]["num_tokens"] is None


def test_the_published_protocol_can_be_combined_in_any_order() -> None:
    for chosen in ("[dynamic,awd_lstm_lm]", "[awd_lstm_lm,dynamic]"):
        one = composed(f"evaluation={chosen}", name="evaluate").evaluation
        assert (one.protocol, one.columns, one.window) == ("awd_lstm_lm", 1, 5)
        assert evaluation_name([f"evaluation={chosen}", "split=test"]) == "awd_lstm_lm_dynamic"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["run=DIR"], "standard"),
        (["evaluation=cache", "evaluation.tune=true"], "cache"),
        (["evaluation=[ cache, standard ]"], "cache"),
        (["evaluation=[cache,dynamic_sgd]"], "cache_dynamic_sgd"),
        (["evaluation='cache'"], "cache"),
        (['evaluation=["cache","temperature"]'], "cache_temperature"),
        (["evaluation=dynamic_cache"], "dynamic_cache"),
        (["evaluation=[dynamic,cache]"], "dynamic_cache"),
        (["evaluation=[dynamic_cache,cache]"], "dynamic_cache"),
    ],
)
def test_results_are_named_after_what_was_chosen(overrides: list[str], name: str) -> None:
    assert evaluation_name(overrides) == name


@pytest.mark.parametrize("chosen", ["dynamic_sgd,cache,dynamic", "dynamic_cache,dynamic_sgd"])
def test_two_rules_of_dynamic_evaluation_are_refused(chosen: str) -> None:
    with pytest.raises(UserError, match=r"dynamic_sgd is a.* -m evaluation=dynamic,dynamic_sgd$"):
        evaluation_name([f"evaluation=[{chosen}]"])


@dataclass
class Blunter(RescoringMode):
    """A custom rescoring mode: a temperature."""

    name: ClassVar[str] = "blunter"
    remedy: ClassVar[str] = "Set blunter higher."
    value: float = 1.0
    grid: dict | None = None

    def rescored(self, reading: Reading, evaluator: Evaluator) -> Reading:
        log_probs = evaluator.model.head.log_probs(reading.outputs).double() / self.value
        places = torch.arange(len(reading.targets)), torch.from_numpy(reading.targets).long()
        return replace(reading, log_probs=log_probs.log_softmax(-1)[places].detach())

    def tune(self, reading: Reading, evaluator: Evaluator) -> list[dict[str, Any]]:
        return tune_in_turn(self, lambda: self.rescored(reading, evaluator).score)


def test_a_custom_mode_is_a_class_and_a_node(run: Path) -> None:
    node = f"{{_target_: {__name__}.Blunter, grid: {{values: [1.0, 3.0, 9.0]}}}}"
    cache = "{_target_: lmbench.evaluation.cache.Cache, interpolation: 0.0, grid: {thetas: [0.1]}}"
    nodes = (f"+evaluation.mine={node}", f"+evaluation.cache={cache}")
    standard = results_of(run, "standard", "split=valid")
    results = results_of(run, "standard", *nodes, "evaluation.tune=true", "split=valid")
    tried = results["tuned"]["blunter"]
    best = min(tried, key=lambda row: row["nll"])
    assert [row["value"] for row in tried] == [1.0, 3.0, 9.0]
    assert tried[0]["nll"] == pytest.approx(standard["nll"], rel=1e-6)
    assert results["evaluation"]["blunter"] == {"value": best["value"]}
    assert results["without_blunter"]["nll"] == standard["nll"]
    assert results["nll"] == best["nll"] < standard["nll"]
    # A later mode is tuned on top of it; the cache here changes nothing.
    assert results["tuned"]["cache"][0]["nll"] == results["without_cache"]["nll"] == best["nll"]


def test_the_files_are_those_of_the_last_results(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    results = results_of(run, "cache", "evaluation.save_tokens=true", *SMALL)
    record = pq.read_table(run / "evaluation-cache-test.parquet")
    mean = -np.mean(record["log_probability"].to_numpy(), dtype=np.float64)
    assert mean == pytest.approx(results["nll"], rel=1e-6)
    results_of(run, "cache", *SMALL)  # without a record: the old one would not fit these results
    assert [path.suffix for path in run.glob("evaluation-*")] == [".json"]
    assert caplog.text.count("from an earlier evaluation") == 2
    for theta, num_warnings in ((0.662, 0), (0.8, 1)):
        results_of(run, "cache", *SMALL, f"evaluation.cache.theta={theta}")
        told = caplog.text.count("from an evaluation with other settings")
        assert told == num_warnings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("split=train", r"^split=train must be valid, test or valid,test\.$"),
        ("split=[test,train]", r"^split=test,train must be"),
        ("split=[]", r"^split= must be"),
        ("data.path=/nowhere", r"^data.path=/nowhere: the run has no data.path"),
        ("device=tpu", r"^device=tpu cannot be used: "),
        ("float32_matmul_precision=fast", r"^float32_matmul_precision='fast'"),
        ("+columns=1", r"^columns is not an option"),
        ("evaluation.tune=true", r"nothing to tune"),
        ("evaluation.tune=no", r"^evaluation.tune=.no. has the wrong type"),
        ("evaluation.columns=null", r"^evaluation.columns=null has the wrong type"),
        ("evaluation.save_tokens=1", r"^evaluation.save_tokens=1 has the wrong type"),
        ("evaluation.columns=0", r"^evaluation: columns must be at least 1, not 0"),
        ("+evaluation.theta=1", r"^evaluation.theta: .* no such"),
        (
            "evaluation=temperature evaluation.temperature=2",
            r"^evaluation.temperature: .* no such",
        ),
        ("evaluation=cache evaluation.cache.grid.thetas=[]", r"grid.thetas must hold"),
        ("evaluation=cache evaluation.cache.theta=1e40", r"no probability above.*Lower .*theta"),
        ("evaluation=cache evaluation.cache.warmup=true evaluation.burn_in=5", r"window=2000"),
        ("evaluation=dynamic", r"too few .*evaluation.dynamic.statistics.columns to 66 or"),
        (
            "evaluation=temperature evaluation.temperature.value=1e-9",
            r"no probability .*value higher",
        ),
        ("evaluation=dynamic evaluation.columns=2 evaluation.burn_in=5", r"dynamic: .*columns=1"),
        ("evaluation=dynamic_sgd evaluation.dynamic.lr=1e9", r"no probability above.*Lower .*lr"),
    ],
)
def test_mistakes_are_reported_in_a_sentence_and_leave_no_files(
    run: Path, overrides: str, message: str
) -> None:
    before = sorted(path.name for path in run.rglob("*"))
    own = (f"run={run}", "device=cpu")
    with pytest.raises(UserError, match=message):
        evaluate(composed(*own, *overrides.split(), name="evaluate"), "standard")
    assert sorted(path.name for path in run.rglob("*")) == before


def test_a_run_whose_name_is_a_number_is_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.rename(tmp_path / "0")
    monkeypatch.chdir(tmp_path)
    assert results_of(Path("0"), "standard")["split"] == "test"


def test_results_are_shown_if_writing_fails_and_written_if_showing_fails(
    run: Path, capsys: pytest.CaptureFixture[str], full_stdout: Callable
) -> None:
    path = run / "evaluation-standard-test.json"
    expected = rf"^stdout cannot .* The results are in {run}\.$"
    with full_stdout(), pytest.raises(UserError, match=expected):
        results_of(run, "standard")
    results = json.loads(path.read_text("utf-8"))
    path.unlink()
    path.mkdir()  # which no file can replace
    with pytest.raises(OSError, match=path.stem):
        results_of(run, "standard")
    assert f"{results['ppl']:,.2f}" in capsys.readouterr().out


def test_a_run_that_cannot_be_written_to_is_refused_before_it_is_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "checkpoints/best.ckpt").unlink()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root can write everywhere
    with pytest.raises(UserError, match=r"cannot be written to"):
        results_of(run, "standard")


def test_another_corpus_is_refused(run: Path) -> None:
    config = OmegaConf.load(run / "config.yaml")
    config.data.seed = 9
    OmegaConf.save(config, run / "config.yaml")
    with pytest.raises(UserError, match="was trained on a corpus with sha256"):
        results_of(run, "standard")


@pytest.mark.slow
def test_the_command_writes_only_into_the_run(run: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = command(elsewhere, f"run={run}", "split=valid", "evaluation=cache")
    assert result.returncode == 0, result.stderr
    assert "without the cache" in result.stdout
    assert (run / "evaluation-cache-valid.json").is_file()
    for arguments in ((), ("run=",)):
        refused = command(elsewhere, *arguments)
        assert refused.returncode == 1
        assert refused.stderr == "Name the directory of a run: lmbench-evaluate RUN_DIR.\n"
    assert not list(elsewhere.iterdir())
    sweep = command(elsewhere, "-m", f"run={run}", "split=valid,test")
    assert sweep.returncode == 0, sweep.stderr
    both = command(elsewhere, str(run), "split=valid,test")
    assert both.returncode == 0, both.stderr
    assert [both.stdout.count(f"evaluation of {split}") for split in ("valid", "test")] == [1, 1]
    assert len(list(run.glob("evaluation-standard-*.json"))) == 2


def test_a_folder_with_an_equals_sign_in_its_name_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    assert with_run(["lr=3", "split=valid"]) == ["split=valid", "run='lr=3'"]
    assert with_run(["a", "~evaluation.cache"]) == ["~evaluation.cache", "run=a"]
    with pytest.raises(SystemExit):
        with_run(["a", "run=b"])
    require_folders(["lr=3", "split=valid", "-cd", "nowhere"])
    with pytest.raises(SystemExit, match=r"^nowhere is not the directory of a run"):
        require_folders(["nowhere"])
    with pytest.raises(SystemExit, match=r"^--split: keys are given without dashes: split="):
        require_folders(["lr=3", "--split", "valid"])
    for arguments in (["lr=3", "cache"], ["cache", "split=valid"]):
        with pytest.raises(SystemExit, match=r"^cache is not the .* Did you mean evaluation=cache"):
            require_folders(arguments)


def test_minimal_pairs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """They need no corpus, and are scored by the best checkpoint."""
    model, vocabulary = lmbench.load(run)
    words = vocabulary.words
    path = tmp_path / "my.tsv"
    lines = [f"{words[n]} {words[n + 1]}\t{words[n + 1]} {words[n]}" for n in range(2, 30)]
    path.write_text("\n".join(lines), "utf-8")
    own = (f"run={run}", "device=cpu", "evaluation=minimal_pairs")
    accuracy = evaluate(
        composed(*own, f"evaluation.pairs={path}", name="evaluate"), "minimal_pairs"
    )
    sums = [
        float(exact_log_probs(model, vocabulary.encode(["<eos>", *text.split()])).sum())
        for line in lines
        for text in line.split("\t")
    ]
    assert accuracy == np.mean(np.array(sums[::2]) > np.array(sums[1::2]))
    results = json.loads((run / "minimal_pairs-my.json").read_text("utf-8"))
    assert results["accuracy"] == accuracy
    of_run = json.loads((run / "results.json").read_text("utf-8"))
    assert results["corpus_sha256"] == of_run["data"]["sha256"]
    assert results["weights_sha256"] == of_run["weights_sha256"]
    assert "lstm, minimal pairs of my\n" in capsys.readouterr().out
    for overrides, message in (
        ((), r"set evaluation\.pairs="),
        (
            ("evaluation=[minimal_pairs,cache]", f"evaluation.pairs={path}"),
            r"^evaluation\.cache: MinimalPairs",
        ),
        ((f"evaluation.pairs={path}", "evaluation.tune=true"), r"^evaluation\.tune: MinimalPairs"),
        ((f"evaluation.pairs={path}", "evaluation.tokenizer=x"), r"^evaluation: tokenizer must be"),
        (
            (f"evaluation.pairs={path}", "evaluation.tokenizer=false"),
            r"^evaluation\.tokenizer=false has the wrong type",
        ),
        ((f"evaluation.pairs={path}x",), r"cannot be read: No such file"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(composed(*own, *overrides, name="evaluate"), "minimal_pairs")
    without = (f"evaluation.pairs={path}", "~evaluation.tokenizer")
    assert evaluate(composed(*own, *without, name="evaluate"), "minimal_pairs") == accuracy
