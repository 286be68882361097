import math
from collections.abc import Callable
from pathlib import Path

import pytest

from lmbench.errors import UserError
from lmbench.report.curves import Curve, read_curve


def read(run_dir: Path, **changes: object) -> Curve:
    arguments: dict = {
        "num_epochs": 3,
        "num_steps": 30,
        "num_tokens": 21_000,
        "switch_epoch": None,
    }
    return read_curve(run_dir, **(arguments | changes))


def test_validations_against_epochs_tokens_and_minutes(
    tmp_path: Path, write_run: Callable[..., Path]
):
    run_dir = write_run(tmp_path / "run", curve=[400.0, 200.0, 150.0])
    curve = read(run_dir, switch_epoch=1)
    assert curve.perplexities == (400.0, 200.0, 150.0)
    assert curve.epochs == (1, 2, 3)
    assert curve.tokens == (7_000, 14_000, 21_000)
    assert curve.minutes == (0.5, 1.0, 1.5)
    assert curve.switch == 1
    assert not curve.goes_on


@pytest.mark.parametrize("timing", ["no column", "no file", "a gap", "empty"])
def test_a_run_that_has_not_recorded_the_time(
    tmp_path: Path, write_run: Callable[..., Path], timing: str
):
    run_dir = write_run(tmp_path / "run", with_seconds=timing != "no column")
    path = run_dir / "timing.csv"
    if timing == "no file":
        path.unlink()
    elif timing == "a gap":
        path.write_text(path.read_text().replace("19,1,,60.0\n", ""))
    elif timing == "empty":
        path.write_text("step,epoch\n")
    assert read(run_dir).minutes is None


def test_several_validations_in_an_epoch(tmp_path: Path):
    rows = ["4,0,80.0", "9,0,70.0", "14,1,60.0", "19,1,50.0"]
    (tmp_path / "metrics.csv").write_text("step,epoch,val/ppl\n" + "\n".join(rows) + "\n")
    curve = read(tmp_path, num_epochs=2, num_steps=20, switch_epoch=0)
    assert curve.epochs == (0.5, 1.0, 1.5, 2.0)
    assert not curve.goes_on
    assert read(tmp_path, num_epochs=2, num_steps=19).goes_on
    assert read(tmp_path, num_epochs=1, num_steps=20).goes_on
    assert curve.switch == 1  # it switched after the epoch's last


def test_an_epoch_cut_short_counts_by_what_was_trained_of_it(
    tmp_path: Path, write_run: Callable[..., Path]
):
    run_dir = write_run(tmp_path / "run", curve=[400.0, 200.0, 150.0])
    curve = read(run_dir, num_epochs=2.25)
    assert curve.epochs == (1, 2, 2.25)
    assert not curve.goes_on


def test_perplexities_that_are_not_finite_are_gaps(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text("step,epoch,val/ppl\n4,0,inf\n9,1,nan\n14,2,50.0\n")
    first, second, last = read(tmp_path).perplexities
    assert math.isnan(first)
    assert math.isnan(second)
    assert last == 50


def test_a_run_that_has_not_counted_its_tokens(tmp_path: Path, write_run: Callable[..., Path]):
    curve = read(write_run(tmp_path / "run"), num_tokens=None)
    assert all(map(math.isnan, curve.tokens))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda text: text[:-3], "is damaged: its last line is cut short"),
        (lambda text: text.replace(",,", ",", 1), "is damaged: line 2 has not 5 fields"),
        (lambda text: text.replace("9,0,,", "x,0,,"), "is damaged: could not convert"),
        (lambda text: text.replace("9,0,,", "nan,0,,"), "is damaged: a step or an epoch is no num"),
        (lambda text: text.replace("step", "stop"), "is damaged: .* is not in list"),
        (lambda text: text.replace("val/ppl", "val/x"), "holds no validation"),
        (lambda text: "", "is damaged: its last line is cut short"),
        (lambda text: text + '"' * 9 + "\n", "is damaged"),
    ],
    ids=["cut", "fields", "text", "nan", "no step", "no validation", "empty", "quotes"],
)
def test_damaged_files_are_named(
    tmp_path: Path, write_run: Callable[..., Path], change: Callable[[str], str], part: str
):
    run_dir = write_run(tmp_path / "run")
    path = run_dir / "metrics.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=rf"metrics\.csv {part}"):
        read(run_dir)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"metrics\.csv cannot be read: No such file"):
        read(tmp_path)
