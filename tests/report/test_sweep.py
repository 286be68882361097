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


def write_job(sweep_dir: Path, name: str, results: dict | None) -> None:
    (sweep_dir / name / ".hydra").mkdir(parents=True)
    if results is not None:
        (sweep_dir / name / "results.json").write_text(json.dumps(results))


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


def test_best_first_unfinished_last(tmp_path: Path):
    write_job(tmp_path, "model-lstm", results(120.0, 110.0))
    write_job(tmp_path, "model-awd_lstm", None)
    write_job(tmp_path, "seed-2", results(99.5, None))
    (tmp_path / "notes").mkdir()
    assert rendered(tmp_path) == [
        ["seed-2", "99.50", "", "1.5"],
        ["model-lstm", "120.00", "110.00", "1.5"],
        ["model-awd_lstm", "not finished", "", ""],
    ]


def test_the_floor_stands_beside_the_test_perplexity(tmp_path: Path):
    """What results do not tell is left out."""
    write_job(tmp_path, "a-1", {"val": {"ppl": 3}})
    write_job(tmp_path, "a-2", results(2.5, 2.75, floor=2.25))
    assert rendered(tmp_path) == [
        ["a-2", "2.50", "2.75", "2.25", "1.5"],
        ["a-1", "3.00", "", "", ""],
    ]


def test_a_name_can_neither_break_the_table_nor_move_the_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sweep_dir = tmp_path / "[b]sweep[" / "x"
    for name in ("[red]lstm[v2]", "\x1b[2Ja"):
        write_job(sweep_dir, name, None)
    assert [row[0] for row in rendered(sweep_dir)] == [r"\x1b[2Ja", "[red]lstm[v2]"]
    _show(sweep_dir)
    out, err = capsys.readouterr()
    assert "\x1b" not in out
    assert not err


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
    write_job(tmp_path, "a-1", content)
    with pytest.raises(UserError, match=rf"a-1/results\.json is damaged: .*{problem}"):
        list(sweep_jobs(tmp_path))
    _show(tmp_path)
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"{tmp_path}/a-1/results.json is damaged: ")
    assert len(err.splitlines()) == 1


def test_what_is_left_to_do_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_job(tmp_path, "a-1", results(120.0, 110.0))
    write_job(tmp_path, "a-2", None)
    _show(tmp_path)
    out, err = capsys.readouterr()
    assert "120.00" in out
    assert "Not finished: a-2. To resume: " in " ".join(out.split())
    assert not err


def test_a_table_that_stdout_does_not_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], full_stdout: Callable
):
    write_job(tmp_path, "a-1", results(120.0, 110.0))
    with full_stdout():
        _show(tmp_path)
    assert capsys.readouterr().err == "stdout cannot be written: No space left on device.\n"


def test_a_table_that_nobody_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_job(tmp_path, "a-1", results(120.0, 110.0))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread, redirect_stdout(unread):
        _show(tmp_path)
    assert not capsys.readouterr().err
