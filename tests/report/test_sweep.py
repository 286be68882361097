import io
import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from rich.console import Console

from lmbench.errors import UserError
from lmbench.report.sweep import _show, sweep_jobs, sweep_table


def write_job(sweep_dir: Path, number: int, overrides: list[str], results: dict | None) -> None:
    folder = sweep_dir / str(number)
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"overrides": overrides}))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))


def results(valid: float, test: float | None, floor: float | None = None) -> dict:
    data = {} if floor is None else {"perplexity_floor": {"valid": floor, "test": floor}}
    return {
        "data": data,
        "val": {"ppl": valid},
        "test": None if test is None else {"ppl": test},
        "train": {"seconds": 90.0},
    }


def rendered(sweep_dir: Path) -> list[list[str]]:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(sweep_table(sweep_jobs(sweep_dir), title="sweep"))
    lines = console.export_text().splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


def test_best_first_unfinished_last_shared_overrides_left_out(tmp_path: Path):
    write_job(tmp_path, 0, ["trainer.max_epochs=2", "model=lstm"], results(120.0, 110.0))
    write_job(tmp_path, 1, ["trainer.max_epochs=2", "model=awd_lstm"], None)
    write_job(tmp_path, 2, ["trainer.max_epochs=2", "seed=2"], results(99.5, None))
    write_job(tmp_path, 10, ["trainer.max_epochs=2", "seed=3"], results(130.0, 120.0))
    assert rendered(tmp_path) == [
        ["2", "seed=2", "99.50", "", "1.5"],
        ["0", "model=lstm", "120.00", "110.00", "1.5"],
        ["10", "seed=3", "130.00", "120.00", "1.5"],
        ["1", "model=awd_lstm", "not finished", "", ""],
    ]


def test_the_floor_stands_beside_the_test_perplexity(tmp_path: Path):
    write_job(tmp_path, 0, ["a=1"], results(120.0, 110.0, floor=103.93))
    assert rendered(tmp_path) == [["0", "a=1", "120.00", "110.00", "103.93", "1.5"]]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"val": None}, "val.ppl is missing"),
        ({"val": {"ppl": 3}, "train": {"seconds": "x"}}, "seconds"),
    ],
)
def test_damaged_results_are_named(
    tmp_path: Path, content: dict, problem: str, capsys: pytest.CaptureFixture[str]
):
    write_job(tmp_path, 0, ["a=1"], content)
    with pytest.raises(UserError, match=rf"0/results\.json is damaged: .*{problem}"):
        list(sweep_jobs(tmp_path))
    _show(tmp_path)
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"{tmp_path}/0/results.json is damaged: ")
    assert len(err.splitlines()) == 1


def test_what_results_do_not_tell_is_left_out(tmp_path: Path):
    """As those of an older lmbench; a sweep that goes on takes the job for done."""
    write_job(tmp_path, 0, ["a=1"], {"val": {"ppl": 3}})
    write_job(tmp_path, 1, ["a=2"], results(2.5, 2.75, floor=2.25))
    assert rendered(tmp_path) == [
        ["1", "a=2", "2.50", "2.75", "2.25", "1.5"],
        ["0", "a=1", "3.00", "", "", ""],
    ]


def test_what_is_left_to_do_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_job(tmp_path, 0, ["a=1"], results(120.0, 110.0))
    write_job(tmp_path, 1, ["a=2"], None)
    _show(tmp_path)
    out, err = capsys.readouterr()
    assert "120.00" in out
    assert "Not finished: 1. To go on: " in " ".join(out.split())
    assert not err


def test_a_table_that_stdout_does_not_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], full_stdout: Callable
):
    write_job(tmp_path, 0, ["a=1"], results(120.0, 110.0))
    with full_stdout():
        _show(tmp_path)
    assert capsys.readouterr().err == "stdout cannot be written: No space left on device.\n"


def test_a_table_that_nobody_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_job(tmp_path, 0, ["a=1"], results(120.0, 110.0))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread, redirect_stdout(unread):
        _show(tmp_path)
    assert not capsys.readouterr().err


def test_jobs_come_in_numerical_order_and_other_folders_are_no_jobs(tmp_path: Path):
    for number in (10, 9, 0):
        write_job(tmp_path, number, [f"seed={number}"], None)
    (tmp_path / "notes").mkdir()
    jobs = list(sweep_jobs(tmp_path))
    assert [job.run_dir.name for job in jobs] == ["0", "9", "10"]
    assert jobs[1].overrides == ("seed=9",)
