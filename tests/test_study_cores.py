"""The study of cores: equal sizes, equal tuning, and the choice of what to train."""

import json
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from scipy import stats
from small import composed, config_of
from study_cores import CACHE, Runner, Stopped, measure_speed, study, time_generation
from study_cores_plan import (
    CORPORA,
    DROPOUTS,
    GENERATION,
    Job,
    best_of,
    final_runs,
    job_of,
    speed_runs,
    trials_of_dropout,
    trials_of_lr,
    valid_perplexity,
    whole_trials_of_lr,
)
from study_cores_tables import against_awd_lstm, tables

from lmbench.errors import UserError
from lmbench.instantiate import training as build
from lmbench.instantiate.model import build_model
from lmbench.run.directory import DIVERGED
from lmbench.run.targets import conf_dir, flatten


def config_of_job(job: Job) -> dict:
    return config_of(*(f"{key}={value}" for key, value in job.overrides.items()))


@pytest.mark.slow
@pytest.mark.parametrize("corpus", CORPORA)
def test_all_cores_have_about_the_same_number_of_parameters(corpus: str):
    sizes = {}
    for core in CORPORA[corpus].sizes:
        config = config_of_job(job_of(Path("x"), corpus, core, lr=0.003, factor=1.0, seed=1))
        build.require_known_keys(config)
        with torch.device("meta"):
            model = build_model(config["model"], vocabulary_size=33_278)
        sizes[core] = sum(parameter.numel() for parameter in model.core.parameters())
    assert set(sizes) <= {path.stem for path in (conf_dir() / "model/core").glob("*.yaml")}
    for core, size in sizes.items():
        assert size == pytest.approx(sizes["awd_lstm"], rel=0.02), core


def test_the_studys_experiment_has_the_dropouts_that_it_multiplies():
    for corpus in CORPORA.values():
        config = flatten(config_of(f"experiment={corpus.experiment}"))
        assert {key: config[key] for key in DROPOUTS} == DROPOUTS


def test_runs_of_a_core_differ_only_in_what_is_tuned():
    jobs = [
        job_of(Path("x"), "wikitext2", "gru", lr=lr, factor=factor)
        for lr in (0.003, 0.006)
        for factor in (0.5, 1.0)
    ]
    differing = {key for key in jobs[0].overrides if len({job.overrides[key] for job in jobs}) > 1}
    assert differing == {"optimizer.lr", *DROPOUTS}
    assert len({job.folder for job in jobs}) == len(jobs)
    assert jobs[1].overrides["model.core.input_dropout"] == 0.3


def write(
    job: Job, valid: float, test: float = 99.0, tokens_per_second: float = 1000.0, gib: int = 1
) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    train = {"tokens_per_second": tokens_per_second, "peak_memory_bytes": gib * 2**30}
    scores = {
        split: {"ppl": perplexity, "nll": math.log(perplexity)}
        for split, perplexity in (("val", valid), ("test", test))
    }
    data = {"perplexity_floor": {"valid": 50.0, "test": 100.0}}
    (job.folder / "results.json").write_text(json.dumps({**scores, "train": train, "data": data}))


@pytest.mark.parametrize("corpus", CORPORA)
def test_what_is_tuned_sees_neither_test_nor_the_seeds_that_are_reported(corpus: str):
    trial = trials_of_lr(Path("x"), corpus, "gru")[0.003].overrides
    assert trial["trainer.limit_test_batches"] == 0
    seeds = CORPORA[corpus].seeds
    assert trial["seed"] not in seeds
    final = job_of(Path("x"), corpus, "gru", lr=0.003, factor=0.5, seed=seeds[0]).overrides
    assert not [key for key in final if key.startswith("trainer.limit")]


def test_the_studys_lstm_has_nothing_that_awd_adds():
    awd, plain = (
        flatten(config_of_job(job_of(Path("x"), "synthetic", core, lr=0.003, factor=0.5)))
        for core in ("awd_lstm", "lstm")
    )
    assert {key: value for key, value in plain.items() if awd[key] != value} == {
        "name": "lstm",
        "model.embedding_dropout": 0.0,
        "model.core.weight_dropout": 0.0,
        "model.core.locked_dropout": False,
        "loss.ar_alpha": 0.0,
        "loss.tar_beta": 0.0,
    }


def test_only_the_learning_rate_is_chosen_on_a_part_of_wikitext2(tmp_path: Path):
    rates = trials_of_lr(tmp_path, "wikitext2", "gru")
    assert {job.overrides["trainer.limit_train_batches"] for job in rates.values()} == {0.2}
    for job in rates.values():
        write(job, 130.0)
    whole = whole_trials_of_lr(tmp_path, "wikitext2", "gru")
    for job in whole.values():
        assert "trainer.limit_train_batches" not in job.overrides
        write(job, 125.0)
    dropouts = trials_of_dropout(tmp_path, "wikitext2", "gru")
    assert not any("trainer.limit_train_batches" in job.overrides for job in dropouts.values())
    assert {job.folder for job in dropouts.values()}.isdisjoint(
        job.folder for job in rates.values()
    )
    for job in dropouts.values():
        write(job, 120.0)
    assert len(final_runs(tmp_path, "wikitext2", "gru")) == 3


def test_only_the_weights_of_the_final_runs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runner = Runner(1, ())
    trial = trials_of_lr(tmp_path, "synthetic", "gru")[0.003]
    final = job_of(tmp_path, "synthetic", "gru", lr=0.003, factor=0.5, seed=2)

    def run(module: str, arguments: list[str], folder: Path) -> None:
        (folder / "checkpoints").mkdir(parents=True)
        write(trial if folder == trial.folder else final, 130.0)

    monkeypatch.setattr(runner, "_run", run)
    for job in (trial, final):
        runner.train(job)
        runner.train(job)  # has nothing left to do
    assert not (trial.folder / "checkpoints").exists()
    assert (final.folder / "checkpoints").exists()
    assert best_of({0: trial}) == [0]


def test_a_resume_and_an_evaluation_are_told_where_the_text_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runner = Runner(1, ("data.path=TEXT", "trainer.max_epochs=1"))
    started: list[list[str]] = []
    monkeypatch.setattr(runner, "_run", lambda _, arguments, folder: started.append(arguments))
    job = job_of(tmp_path, "synthetic", "gru", lr=0.003, factor=0.5, seed=2)
    runner.evaluate(job)  # there is nothing to evaluate
    assert started == []
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").touch()
    runner.train(job)
    write(job, 130.0)
    runner.evaluate(job)
    (resume, evaluation) = started
    assert resume == [f"resume={job.folder}", "data.path=TEXT"]
    assert evaluation[0] == str(job.folder)
    assert evaluation[1:] == [*CACHE, "data.path=TEXT"]
    (job.folder / "evaluation-cache-test.json").touch()
    runner.evaluate(job)  # is done
    assert len(started) == 2


def test_stopping_twice_asks_each_process_once():
    """Of two SIGTERMs, the second would end a run unsaved."""
    runner, process = Runner(1, ()), Mock()
    runner._processes.add(process)
    runner.stop()
    runner.stop()
    process.terminate.assert_called_once()
    with pytest.raises(Stopped):
        runner._run("says", [], Path("x"))


def test_a_run_has_its_threads_and_does_not_hear_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With Ctrl-C and the study's SIGTERM, it would have two signals, and end unsaved."""
    (tmp_path / "says.py").write_text(
        "import os, sys\n"
        "open(sys.argv[1], 'w').write(f'{os.environ[\"OMP_NUM_THREADS\"]} {os.getsid(0)}')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    Runner(3, ())._run("says", [str(tmp_path / "said")], tmp_path)
    num_threads, session = (tmp_path / "said").read_text().split()
    assert num_threads == "3"
    assert int(session) != os.getsid(0)


@pytest.mark.parametrize("is_divergence", [True, False])
def test_only_a_divergence_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_divergence: bool
):
    (tmp_path / "says.py").write_text("import sys; sys.exit('No space left on device')")
    if is_divergence:
        (tmp_path / DIVERGED).touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with nullcontext() if is_divergence else pytest.raises(UserError, match="No space left"):
        Runner(1, ())._run("says", [], tmp_path)
    assert valid_perplexity(Job(tmp_path, {})) == (math.inf if is_divergence else None)


def test_paths_are_quoted_as_hydra_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runner, started = Runner(1, ()), []
    monkeypatch.setattr(runner, "_run", lambda _, arguments, folder: started.append(arguments))
    job = job_of(tmp_path / "Übung (2), neu", "synthetic", "gru", lr=0.003, factor=0.5, seed=2)
    runner.train(job)
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").touch()
    runner.train(job)
    for arguments, key in zip(started, ("hydra.run.dir", "resume"), strict=True):
        found = [OverridesParser.create().parse_override(one) for one in arguments]
        assert {one.key_or_group: one.value() for one in found}[key] == str(job.folder)


def test_the_cache_is_tuned_on_the_grid_of_the_config():
    evaluation = composed("run=x", *CACHE, name="evaluate").evaluation
    assert evaluation.tune
    grid = evaluation.cache.grid
    assert (list(grid.windows), len(grid.thetas)) == ([3785], 10)
    assert len(grid.interpolations) > 5


def test_the_time_of_a_drawn_word_is_measured(make_run: Callable[..., Path]):
    run_dir = make_run()
    time_generation(run_dir, 1)
    assert json.loads((run_dir / GENERATION).read_text())["milliseconds_per_word"] > 0


def test_cores_take_turns_when_speed_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    runner, trained = Runner(1, ()), []

    def run(module: str, arguments: list[str], folder: Path) -> None:
        (folder / "checkpoints").mkdir(parents=True)
        write(Job(folder, {}), 130.0)
        trained.append(folder.parent.name)

    monkeypatch.setattr(runner, "_run", run)
    monkeypatch.setattr(
        "study_cores.time_generation", lambda folder, _: (folder / GENERATION).write_text("{}")
    )
    for _ in range(2):  # the second time, there is nothing left to do
        measure_speed(tmp_path, "synthetic", ["gru", "qrnn"], runner, 1)
    assert trained == ["gru", "qrnn"] * 3
    assert list(tmp_path.rglob("checkpoints")) == []


def test_a_run_that_fails_keeps_no_other_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    runner, evaluated = Runner(1, ()), []

    def run(module: str, arguments: list[str], folder: Path) -> None:
        if module == "lmbench.cli.evaluate":
            evaluated.append(folder)
        if "lr_0.003_dropout_0.5" in folder.name and "tuning/gru" in str(folder):
            raise UserError(f"{folder}: full disk")
        write(Job(folder, {}), 130.0)

    monkeypatch.setattr(runner, "_run", run)
    with pytest.raises(UserError, match=r"Failed:\n.*gru.*full disk"):
        study(tmp_path, "synthetic", ["gru", "qrnn"], runner, 2)
    assert "full disk" in capsys.readouterr().err
    assert final_runs(tmp_path, "synthetic", "gru") == []
    runs = final_runs(tmp_path, "synthetic", "qrnn")
    assert None not in map(valid_perplexity, runs)
    assert sorted(evaluated) == [run.folder for run in runs]


def diverge(job: Job) -> None:
    job.folder.mkdir(parents=True)
    (job.folder / DIVERGED).write_text("The loss is not finite.")


def test_a_diverged_run_is_never_the_best(tmp_path: Path):
    trials = trials_of_lr(tmp_path, "synthetic", "gru")
    for lr, perplexity in ((0.0015, 150.0), (0.003, 130.0), (0.006, 120.0), (0.012, 120.5)):
        write(trials[lr], perplexity)
    diverge(trials[0.024])
    assert best_of(trials) == [0.006, 0.012, 0.003, 0.0015]


def test_a_core_whose_whole_runs_all_diverge_is_not_trained_further(tmp_path: Path):
    for job in trials_of_lr(tmp_path, "wikitext2", "gru").values():
        write(job, 130.0)
    for job in whole_trials_of_lr(tmp_path, "wikitext2", "gru").values():
        diverge(job)
    assert trials_of_dropout(tmp_path, "wikitext2", "gru") == {}
    assert final_runs(tmp_path, "wikitext2", "gru") == []
    row = "| gru | 130.00 | 130.00 | 130.00 | 130.00 | 130.00 "
    row += "| lr 0.0015: diverged, lr 0.003: diverged, lr 0.006: diverged | — | — |"
    assert row in tables(tmp_path, "wikitext2")


def test_a_setting_at_the_edge_of_its_grid_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    script = tmp_path / "says.py"
    text = "the best cache.theta, 1, is at or beyond the edge of its grid: try a wider one"
    script.write_text(
        "import logging\n"
        "from lmbench.terminal.console import ConsoleHandler\n"
        "logging.getLogger().addHandler(ConsoleHandler())\n"
        f"logging.getLogger().warning({text!r})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    Runner(1, ())._run("says", [], tmp_path)
    assert text in capsys.readouterr().out


def test_each_core_is_compared_with_awd_lstm():
    nats = {
        "awd_lstm": [4.50, 4.52, 4.51],
        "gru": [4.53, 4.56, 4.55],
        "qrnn": [4.49, 4.52, 4.53],
        "hgrn2": [4.6],  # one seed
    }
    texts = against_awd_lstm(nats)
    assert set(texts) == {"gru", "qrnn"}
    test = stats.ttest_ind(nats["gru"], nats["awd_lstm"], equal_var=False)
    low, high = test.confidence_interval()
    percent = [100 * (math.exp(value) - 1) for value in (0.11 / 3, low, high)]
    start = "{:+.1f}% ({:+.1f} to {:+.1f}), p ".format(*percent)
    assert texts["gru"] == f"{start}{2 * test.pvalue:.3f}"  # Holm: the smaller of two
    other = stats.ttest_ind(nats["qrnn"], nats["awd_lstm"], equal_var=False)
    assert texts["qrnn"].endswith(f"p {other.pvalue:.3f}")


def tune(root: Path, core: str) -> None:
    for job in trials_of_lr(root, "synthetic", core).values():
        write(job, 130.0)
    for job in trials_of_dropout(root, "synthetic", core).values():
        write(job, 130.0)


def test_the_best_rate_then_the_best_dropout_then_seeds(tmp_path: Path):
    def lrs() -> dict[float, Job]:
        return trials_of_lr(tmp_path, "synthetic", "gru")

    def dropouts() -> dict[float, Job]:
        return trials_of_dropout(tmp_path, "synthetic", "gru")

    for lr, perplexity in ((0.0015, 150.0), (0.003, 130.0), (0.006, 120.0), (0.012, 140.0)):
        write(lrs()[lr], perplexity)
    assert dropouts() == {}  # one rate is still missing
    write(lrs()[0.024], 160.0)
    whole = whole_trials_of_lr(tmp_path, "synthetic", "gru")
    # The same runs: none is short here.
    assert whole == {lr: lrs()[lr] for lr in (0.006, 0.003, 0.012)}
    assert {job.overrides["optimizer.lr"] for job in dropouts().values()} == {0.006}
    assert dropouts()[0.5].folder == lrs()[0.006].folder
    write(dropouts()[0.25], 119.0)
    assert final_runs(tmp_path, "synthetic", "gru") == []
    write(dropouts()[1.0], 125.0)
    runs = final_runs(tmp_path, "synthetic", "gru")
    assert [run.overrides["seed"] for run in runs] == [2, 3, 4, 5, 6]
    assert {run.overrides["model.core.input_dropout"] for run in runs} == {0.3 * 0.25}

    for number, run in enumerate(runs[:2]):
        write(run, 110.0 + 2 * number, 115.0 + 2 * number, gib=1 + number)
    tuning, final = tables(tmp_path, "synthetic").split("\n\n")
    assert "| lr 0.024 | dropout x 0.25 | dropout x 0.5 | dropout x 1.0 |" in tuning
    row = "| gru | 150.00 | 130.00 | 120.00 | 140.00 | 160.00 | 119.00 | 120.00 | 125.00 |"
    assert row in tuning
    diverge(runs[2])
    Runner(1, ()).evaluate(runs[2])  # there is nothing to evaluate
    assert "| gru (1 of 5 diverged) | 244 | " in tables(tmp_path, "synthetic")
    # Student's t with one degree of freedom, 12.7062, times a standard error of 1
    # The mean of log2(1.15) = 0.2016 and log2(1.17) = 0.2265
    start = "| 244 | 0.006 | 0.25 | 111.00 ± 12.71 | 116.00 ± 12.71 | 0.214 "
    assert f"{start}| — | — | — | 2.00 | — |" in final

    for run, perplexity in zip(runs[:2], (105.0, 107.0), strict=True):
        values = {"ppl": perplexity, "without_cache": {"ppl": 115.0}}
        (run.folder / "evaluation-cache-test.json").write_text(json.dumps(values))
    timed = speed_runs(tmp_path, "synthetic", "gru")
    for job, speed, milliseconds in zip(timed, (900, 1000, 1500), (9.0, 2.0, 3.0), strict=True):
        write(job, 130.0, tokens_per_second=speed)
        values = {"milliseconds_per_word": milliseconds}
        (job.folder / GENERATION).write_text(json.dumps(values))
    tune(tmp_path, "awd_lstm")
    for run, test in zip(
        final_runs(tmp_path, "synthetic", "awd_lstm"), (100.0, 101.0), strict=False
    ):
        write(run, 130.0, test)
    (row,) = (x for x in tables(tmp_path, "synthetic").splitlines() if start in x)
    # sqrt(115 · 117 / (100 · 101)) = 1.154
    assert f"{start}| +15.4% (" in row
    assert row.endswith("| 106.00 ± 12.71 | 1,000 | 2.00 | 3.00 |")
