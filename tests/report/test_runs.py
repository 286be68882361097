import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmbench.errors import UserError
from lmbench.report._curves import Curve
from lmbench.report._evaluations import SplitScore
from lmbench.report.comparison import compare
from lmbench.report.runs import Skipped, find_run_dirs, read_run, read_runs

Write = Callable[..., Path]


def test_a_run_as_it_was_written(tmp_path: Path, write_run: Write):
    run_dir = write_run(
        tmp_path / "run",
        seed=7,
        valid=120.0,
        test=110.0,
        results={"data.perplexity_floor": {"valid": 101.5, "test": 99.5}},
    )
    run = read_run(run_dir)
    assert (run.name, run.model, run.seed) == ("lstm", "lstm", 7)
    assert run.scores == {
        "valid": SplitScore(math.log(120), 120.0, 99),
        "test": SplitScore(math.log(110), 110.0, 99),
    }
    assert run.corpus.perplexity_floor == {"valid": 101.5, "test": 99.5}
    assert run.protocol == "protocol standard, columns 64, burn-in 512"
    keys = (("num_parameters",), ("train", "epochs"), ("best_epoch",), ("train", "seconds"))
    assert [run.number(*of) for of in keys] == [1_234_567, 3, 2, 90.0]
    assert run.number("train", "nothing") is run.number("model") is run.number("train") is None
    assert run.config["optimizer.betas[1]"] == 0.99
    assert run.curve is not None
    assert run.curve.perplexities[-1] == 120.0
    assert run.skipped == []


def test_a_run_is_called_by_its_label_its_name_or_its_model(tmp_path: Path, write_run: Write):
    named = write_run(tmp_path / "named", config={"name": "mine"})
    assert read_run(named).name == "mine"
    assert read_run(named, "theirs").name == "theirs"
    assert read_runs([("theirs", tmp_path)])[0][0].name == "theirs"


@pytest.mark.parametrize(
    ("valid", "test", "told"),
    [
        (101, None, ""),
        (1_000, 100, ", only 99 targets of valid"),
        (100, 101, ""),  # the published protocol leaves out a few
        (100, 120, ", only 99 targets of test"),
    ],
)
def test_splits_scored_only_in_part_are_reported(
    tmp_path: Path, write_run: Write, valid: int, test: int | None, told: str
):
    """99 targets were scored in each; a split that was not scored at all is not reported."""
    num_tokens = {"data.num_tokens": {"valid": valid, "test": test or 10**6}}
    run = read_run(write_run(tmp_path / "run", test=test and 110.0, results=num_tokens))
    assert run.protocol == f"protocol standard, columns 64, burn-in 512{told}"


def test_evaluations_are_read_with_their_records(
    tmp_path: Path, write_run: Write, write_evaluation: Write
):
    run_dir = write_run(tmp_path / "run")
    write_evaluation(run_dir, "cache", "valid", ppl=90.0)
    write_evaluation(run_dir, "my-own-test", "test", log_probabilities=np.array([-1.0, -2.0]))
    write_evaluation(run_dir, "of_another_corpus", "test", ppl=90.0, sha256="00")
    (run_dir / "evaluation-cut-test.json").write_text("{")
    run = read_run(run_dir)
    assert run.evaluations.keys() == {("cache", "valid"), ("my-own-test", "test")}
    assert run.evaluations["cache", "valid"].score.ppl == 90
    assert run.evaluations["cache", "valid"].records is None
    own = run.evaluations["my-own-test", "test"]
    assert own.records == run_dir / "evaluation-my-own-test-test.parquet"
    assert own.score.num_tokens == 2
    assert [item.path.name for item in run.skipped] == [
        "evaluation-cut-test.json",
        "evaluation-of_another_corpus-test.json",
    ]


@pytest.mark.parametrize(
    ("evaluation", "weights", "part"),
    [
        ({"weights_sha256": "1"}, "1", None),
        ({"weights_sha256": "1"}, None, None),
        ({"weights_sha256": "1"}, "2", "weights that the run no longer has"),
        ({"weights_sha256": []}, "2", "damaged"),
        ({"ppl": 0.5}, None, "0.5 cannot be the perplexity"),
        ({"evaluation": {"cache": [1]}}, None, "damaged"),
    ],
)
def test_an_evaluation_must_match_its_file_name_and_the_weights_of_the_results(
    tmp_path: Path, write_run: Write, write_evaluation: Write, evaluation: dict, weights, part
):
    run_dir = write_run(tmp_path / "run", results={"weights_sha256": weights})
    path = write_evaluation(run_dir, "cache", "test", ppl=54.0)
    path.write_text(json.dumps(json.loads(path.read_text()) | evaluation))
    run = read_run(run_dir)
    assert len(run.evaluations) == (part is None)
    assert [part in item.reason for item in run.skipped] == ([] if part is None else [True])


def damage(run_dir: Path, name: str, content: str | None) -> None:
    path = run_dir / name
    path.unlink() if content is None else path.write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("results.json", None, "Did not finish: it has no results.json. To resume: lmbench-train"),
        ("results.json", '{"model": ', "results.json is damaged: Expecting value"),
        ("results.json", '{"model": "lstm"}', "results.json is damaged: KeyError 'data'"),
        ("config.yaml", None, "config.yaml cannot be read: No such file"),
        ("config.yaml", "a: [", "config.yaml is damaged"),
        ("config.yaml", "{}", "config.yaml is empty"),
        ("config.yaml", "{a: " * 600 + "1" + "}" * 600, "recursion"),
    ],
)
def test_runs_that_cannot_be_read_are_named_and_the_others_still_count(
    tmp_path: Path, write_run: Write, name: str, content: str | None, reason: str
):
    good = write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad")
    damage(bad, name, content)
    runs, left_out = read_runs([(None, tmp_path)])
    assert [run.run_dir for run in runs] == [good]
    assert [item.path for item in left_out] == [bad]
    assert reason in left_out[0].reason


def test_no_resume_is_offered_for_a_run_that_diverged(tmp_path: Path, write_run: Write):
    run_dir = write_run(tmp_path / "bad")
    (run_dir / "results.json").unlink()
    (run_dir / "diverged.txt").write_text("The loss of step 3 is nan. Lower optimizer.lr.\n")
    with pytest.raises(UserError) as error:
        read_run(run_dir)
    assert str(error.value) == "Diverged. The loss of step 3 is nan. Lower optimizer.lr."


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("val.ppl", 0.5),
        ("val.nll", -1.0),
        ("val", None),
        ("val.ppl", "nine"),
        ("seed", "one"),
        ("data.perplexity_floor", {"valid": -math.inf}),
        ("data.perplexity_floor", {"test": math.nan}),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, write_run: Write, key: str, value: object):
    run_dir = write_run(tmp_path / "run", results={key: value})
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        read_run(run_dir)


def test_a_run_that_diverged_is_left_out(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "good")
    write_run(tmp_path / "large", seed=2, valid=9e99, test=9e99)
    write_run(tmp_path / "larger", seed=3, test=1e307)
    runs, (item,) = read_runs([(None, tmp_path)])
    assert [run.run_dir.name for run in runs] == ["good", "large"]
    assert "1e+307 cannot be the perplexity of a run, unless it diverged" in item.reason


def test_a_run_without_its_curve_still_counts(tmp_path: Path, write_run: Write):
    run_dir = write_run(tmp_path / "run")
    damage(run_dir, "metrics.csv", "step,epoch,val/ppl\n9,0,1")
    (run,), (item,) = read_runs([(None, run_dir)])
    assert run.curve is None
    assert run.scores["test"].ppl == 110
    assert item.reason.startswith("The run counts without this file.")


def test_no_usable_run_is_an_error_that_says_why(tmp_path: Path, write_run: Write):
    for number in range(5):
        damage(write_run(tmp_path / str(number)), "results.json", None)
    with pytest.raises(UserError, match=r"no finished run .*/0: Did not finish"):
        read_runs([(None, tmp_path)])


def test_names_cannot_move_the_cursor(tmp_path: Path, write_run: Write):
    run = read_run(write_run(tmp_path / "run", model="\x1b[2J", results={"data.name": "\u202ex"}))
    assert (run.model, run.corpus.name) == ("\\x1b[2J", "\\u202ex")


def found_in(*folders: Path) -> tuple[list[Path], list[Skipped]]:
    skipped: list[Skipped] = []
    return [run_dir for folder in folders for run_dir in find_run_dirs(folder, skipped)], skipped


def test_runs_are_found_at_any_depth_in_numerical_order(tmp_path: Path, write_run: Write):
    jobs = [write_run(tmp_path / f"multirun/2026-01-02/03-04-05/{n}") for n in (10, 9, 0)]
    single = write_run(tmp_path / "outputs/2026-01-01/00-00-00")
    (single / "checkpoints").mkdir()
    found, left_out = found_in(tmp_path)
    assert found == [*reversed(jobs), single]
    assert left_out == []


def test_a_run_named_twice_counts_once(tmp_path: Path, write_run: Write):
    run = write_run(tmp_path / "sweep/0")
    link = tmp_path / "link"
    link.symlink_to(run)
    runs, skipped = read_runs([(None, x) for x in (run, tmp_path / "sweep", link, tmp_path)])
    assert (len(runs), skipped) == (1, [])
    runs, skipped = read_runs([("one", run), ("two", tmp_path), ("one", run)])
    assert [one.name for one in runs] == ["one"]
    (reason,) = (item.reason for item in skipped)
    assert reason == "Given as one and as two: it counts once, as one."
    runs, skipped = read_runs([(None, tmp_path), ("best", run), (None, run)])
    assert ([one.name for one in runs], skipped) == (["best"], [])


def test_a_link_that_is_not_followed_is_named(tmp_path: Path, write_run: Write):
    run = write_run(tmp_path / "elsewhere/run")
    other = write_run(tmp_path / "folder/run")
    for name, target in (("link", run), ("latest", other), (".hidden", run)):
        (tmp_path / "folder" / name).symlink_to(target)
    found, left_out = found_in(tmp_path / "folder")
    assert found == [other]
    assert [(item.path, item.reason) for item in left_out] == [
        (tmp_path / "folder/link", "Is a link, which is not followed: name its target.")
    ]


@pytest.mark.parametrize("target", ["elsewhere", "elsewhere/run"])
def test_a_link_that_is_given_directly_is_followed(tmp_path: Path, write_run: Write, target: str):
    run = write_run(tmp_path / "elsewhere/run")
    link = tmp_path / "folder/link"
    link.parent.mkdir()
    link.symlink_to(tmp_path / target)
    found, _ = found_in(link, tmp_path / "folder")
    assert [path.resolve() for path in found] == [run]


def test_runs_in_the_folder_of_a_run_are_found(tmp_path: Path, write_run: Write):
    outer = write_run(tmp_path / "exp")
    jobs = [write_run(outer / str(number)) for number in range(2)]
    write_run(outer / "checkpoints/copy")
    inner = write_run(tmp_path / "failed/run")
    assert found_in(tmp_path)[0] == [outer, *jobs, inner]


def test_a_folder_without_a_run_is_named(tmp_path: Path, write_run: Write):
    empty = tmp_path / "empty"
    empty.mkdir()
    run = write_run(tmp_path / "run")
    found, left_out = found_in(empty, run)
    assert found == [run]
    assert [(item.path, item.reason) for item in left_out] == [(empty, "Holds no run.")]


def test_what_is_not_a_folder_is_an_error(tmp_path: Path):
    for path in (tmp_path / "nowhere", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"is not a folder\. Name run directories"):
            find_run_dirs(path, [])


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, write_run: Write, monkeypatch: pytest.MonkeyPatch
):
    run, scandir = write_run(tmp_path / "run"), os.scandir
    (tmp_path / "closed").mkdir()

    def refuse(path: str):
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found, (item,) = found_in(tmp_path)
    assert (found, item.path) == ([run], tmp_path / "closed")


def curve_of(run_dir: Path) -> Curve:
    curve = read_run(run_dir).curve
    assert curve is not None
    return curve


def test_validations_against_epochs_and_minutes(tmp_path: Path, write_run: Write):
    """The last epoch was cut short."""
    results = {"nt_asgd.triggered_epoch": 1, "train.epochs": 2.25}
    curve = curve_of(write_run(tmp_path / "run", curve=[400.0, 200.0, 150.0], results=results))
    assert curve.perplexities == (400.0, 200.0, 150.0)
    assert curve.epochs == (1, 2, 2.25)
    assert curve.minutes == (0.5, 1.0, 1.5)
    assert curve.switch == 1


@pytest.mark.parametrize("timing", ["no column", "no file", "a gap", "empty"])
def test_a_run_whose_times_were_not_recorded(tmp_path: Path, write_run: Write, timing: str):
    run_dir = write_run(tmp_path / "run", with_seconds=timing != "no column")
    path = run_dir / "timing.csv"
    if timing == "no file":
        path.unlink()
    elif timing == "a gap":
        path.write_text(path.read_text().replace("19,1,,60.0\n", ""))
    elif timing == "empty":
        path.write_text("step,epoch\n")
    assert curve_of(run_dir).minutes is None


def test_perplexities_that_are_not_finite_are_gaps(tmp_path: Path, write_run: Write):
    run_dir = write_run(tmp_path / "run")
    (run_dir / "metrics.csv").write_text("step,epoch,val/ppl\n4,0,inf\n9,1,nan\n14,2,50.0\n")
    first, second, last = curve_of(run_dir).perplexities
    assert math.isnan(first)
    assert math.isnan(second)
    assert last == 50


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda text: text[:-3], "is cut"),
        (lambda text: text.replace(",,", ",", 1), "as many fields"),
        (lambda text: text.replace("9,0,,", "9,x,,"), "invalid literal"),
        (lambda text: text.replace("epoch", "echo"), "KeyError 'epoch'"),
        (lambda text: text.replace("val/ppl", "val/x"), "holds no validation"),
        (lambda text: "", "holds no validation"),
        (lambda text: text + '"' * 9 + "\n", "damaged"),
    ],
    ids=["cut", "fields", "text", "no epoch", "no validation", "empty", "quotes"],
)
def test_damaged_curves_are_named(
    tmp_path: Path, write_run: Write, change: Callable[[str], str], part: str
):
    run_dir = write_run(tmp_path / "run")
    path = run_dir / "metrics.csv"
    path.write_text(change(path.read_text()))
    (item,) = read_run(run_dir).skipped
    assert f"{path} is damaged" in item.reason
    assert part in item.reason


def test_a_damaged_timing_costs_the_curve_and_not_the_run(tmp_path: Path, write_run: Write):
    run_dir = write_run(tmp_path / "run")
    (run_dir / "timing.csv").write_text("train/seconds\n1.0\n")
    (item,) = read_run(run_dir).skipped
    assert "timing.csv is damaged: KeyError 'step'" in item.reason


TOKENS = (b"null", b"[]", b"-1", b"1e999", b"NaN", b"\x00", b"\xff", b"${a}", b"*a", b"<<: ", b'"')


def test_fuzz_damage_causes_only_errors_meant_for_users(
    tmp_path: Path, write_run: Write, write_evaluation: Write
):
    """Random damage to single files of a run, beside a run that is intact."""
    # As in the other fuzz tests: new cases if someone asks for more.
    seed = random.randrange(2**32) if "FUZZ_CASES" in os.environ else 1
    print(f"seed {seed}")
    rng = random.Random(seed)
    write_run(tmp_path / "whole")
    run_dir = write_run(tmp_path / "damaged", seed=2)
    write_evaluation(run_dir, log_probabilities=np.linspace(-3, -1, 50))
    files = {path: path.read_bytes() for path in sorted(run_dir.iterdir())}
    for _ in range(int(os.environ.get("FUZZ_CASES", "150"))):
        path = rng.choice(list(files))
        content = bytearray(files[path])
        for _ in range(rng.choice((1, 1, 4))):
            place = rng.randrange(len(content) + 1)
            content[place : place + rng.choice((0, 1, 9, 10_000))] = rng.choice(TOKENS)
        path.write_bytes(content)
        report = compare([(None, tmp_path)])
        num_runs = sum(len(g.runs) for c in report.chapters for g in c.section.groups)
        assert num_runs + len(report.skipped) >= 2
        path.write_bytes(files[path])
    assert json.loads((run_dir / "results.json").read_text())["seed"] == 2
