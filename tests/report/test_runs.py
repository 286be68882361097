import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmbench.errors import UserError
from lmbench.report.comparison import compare
from lmbench.report.runs import read_run, read_runs
from lmbench.report.scores import Score

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
    assert (run.model, run.seed, run.num_parameters) == ("lstm", 7, 1_234_567)
    assert run.scores == {
        "valid": Score(math.log(120), 120.0, 99),
        "test": Score(math.log(110), 110.0, 99),
    }
    assert run.corpus.perplexity_floor == {"valid": 101.5, "test": 99.5}
    assert run.protocol == "protocol standard, columns 64, burn-in 512"
    assert (run.num_epochs, run.best_epoch, run.seconds) == (3, 2, 90.0)
    assert run.curve is not None
    assert run.curve.perplexities[-1] == 120.0
    assert run.left_out == ()


def test_a_run_that_was_not_tested(tmp_path: Path, write_run: Write):
    assert "test" not in read_run(write_run(tmp_path / "run", test=None)).scores


@pytest.mark.parametrize(
    ("valid", "test", "told"),
    [
        (101, None, ""),
        (1_000, 100, ", only 99 of the 999 targets of valid"),
        (100, 101, ""),  # the published protocol leaves out a few
        (100, 120, ", only 99 of the 119 targets of test"),
    ],
)
def test_what_was_scored_in_part_is_told(
    tmp_path: Path, write_run: Write, valid: int, test: int | None, told: str
):
    """Of 99 targets each; a split that was not scored is none of it."""
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
    assert [item.path.name for item in run.left_out] == [
        "evaluation-cut-test.json",
        "evaluation-of_another_corpus-test.json",
    ]


def damage(run_dir: Path, name: str, content: str | None) -> None:
    path = run_dir / name
    path.unlink() if content is None else path.write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("results.json", None, "Did not finish: it has no results.json. To go on: lmbench-train"),
        ("results.json", '{"model": ', "results.json is damaged: Expecting value"),
        ("results.json", '{"model": "lstm"}', "results.json is damaged: data.name is missing"),
        ("config.yaml", None, "Has no config.yaml"),
        ("config.yaml", "a: [", "config.yaml is damaged"),
    ],
)
def test_what_cannot_be_read_is_named_and_does_not_lose_the_others(
    tmp_path: Path, write_run: Write, name: str, content: str | None, reason: str
):
    good = write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad")
    damage(bad, name, content)
    runs, left_out = read_runs([tmp_path])
    assert [run.run_dir for run in runs] == [good]
    assert [item.path for item in left_out] == [bad]
    assert reason in left_out[0].reason


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "metrics.csv"])
@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.touch() or os.truncate(path, 2**28 + 1),
        lambda path: path.write_text(f"a: {'1' * 6000}\n"),
        lambda path: path.write_text(f"a: 0x{'f' * 6000}\n"),
        lambda path: path.write_text(BOMB),
    ],
    ids=["pipe", "device", "large", "number", "hex", "bomb"],
)
def test_a_file_that_would_hold_up_or_end_a_comparison(
    tmp_path: Path, write_run: Write, name: str, make: Callable[[Path], object]
):
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad", seed=2)
    (bad / name).unlink()
    make(bad / name)
    report = compare([tmp_path], split="test", published=[])
    (item,) = report.left_out
    assert item.path == bad
    is_curve = name.endswith(".csv")  # without which it counts
    assert sum(len(g.runs) for g in report.chapters[0].section.groups) == 1 + is_curve


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 9)
)


@pytest.mark.parametrize(
    ("key", "value"),
    [("val.ppl", 0.5), ("val.nll", -1.0), ("val", None), ("val.ppl", "9"), ("seed", 1.5)],
)
def test_values_that_cannot_be(tmp_path: Path, write_run: Write, key: str, value: object):
    run_dir = write_run(tmp_path / "run", results={key: value})
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        read_run(run_dir)


def test_a_run_that_diverged_is_left_out(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "good")
    write_run(tmp_path / "large", seed=2, valid=9e99, test=9e99)
    write_run(tmp_path / "larger", seed=3, test=1e307)
    runs, (item,) = read_runs([tmp_path])
    assert [run.run_dir.name for run in runs] == ["good", "large"]
    assert "a perplexity of 1e+307 is that of a run that diverged" in item.reason


def test_a_run_without_its_curve_still_counts(tmp_path: Path, write_run: Write):
    run_dir = write_run(tmp_path / "run")
    damage(run_dir, "metrics.csv", "step,epoch,val/ppl\n9,0,1")
    (run,), (item,) = read_runs([run_dir])
    assert run.curve is None
    assert run.scores["test"].ppl == 110
    assert item.reason.startswith("Counts, but without its curve.")


@pytest.mark.parametrize(
    ("row", "is_new"),
    [
        ("39,3,,4.0,54.6", True),  # an epoch more
        ("34,2,,4.0,54.6", True),  # the first results were those of half an epoch
        ("30,3,4.0,,", False),  # the test, which is logged last
    ],
)
def test_a_run_that_was_trained_on_after_its_results_is_left_out(
    tmp_path: Path, write_run: Write, row: str, is_new: bool
):
    write_run(tmp_path / "good")
    run_dir = write_run(tmp_path / "trained_on", seed=2)
    with (run_dir / "metrics.csv").open("a") as file:
        file.write(f"{row}\n")
    runs, left_out = read_runs([tmp_path])
    assert len(runs) == (1 if is_new else 2)
    assert [item.path for item in left_out] == ([run_dir] if is_new else [])
    if is_new:
        assert left_out[0].reason.startswith("Has been trained on since its results.json")
        assert left_out[0].reason.endswith(f"lmbench-train resume={run_dir}")


def test_no_usable_run_is_an_error_that_says_why(tmp_path: Path, write_run: Write):
    for number in range(5):
        damage(write_run(tmp_path / str(number)), "results.json", None)
    with pytest.raises(UserError, match=r"no finished run .*/0: Did not finish.* And 2 more\.$"):
        read_runs([tmp_path])


def test_names_cannot_move_the_cursor(tmp_path: Path, write_run: Write):
    run = read_run(write_run(tmp_path / "run", model="\x1b[2J", results={"data.name": "\u202ex"}))
    assert (run.model, run.corpus.name) == ("\\x1b[2J", "\\u202ex")


TOKENS = (b"null", b"[]", b"-1", b"1e999", b"NaN", b"\x00", b"\xff", b"${a}", b"*a", b"<<: ", b'"')


def test_fuzz_whatever_is_damaged_only_errors_for_users_arise(
    tmp_path: Path, write_run: Write, write_evaluation: Write
):
    """Random damage to single files of a run, beside one that is whole."""
    # As the other fuzz tests: new cases where someone looks for more.
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
        report = compare([tmp_path], split="test", published=[])
        num_runs = sum(len(g.runs) for c in report.chapters for g in c.section.groups)
        assert num_runs + len(report.left_out) >= 2
        path.write_bytes(files[path])
    assert json.loads((run_dir / "results.json").read_text())["seed"] == 2
