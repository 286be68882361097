import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lmbench.errors import UserError
from lmbench.report.sweep import sweep_jobs, sweep_table


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


def test_damaged_results_are_named(tmp_path: Path):
    write_job(tmp_path, 0, ["a=1"], {"val": None})
    with pytest.raises(UserError, match=r"0/results\.json is damaged: val\.ppl is missing"):
        list(sweep_jobs(tmp_path))


def test_jobs_come_in_numerical_order_and_other_folders_are_no_jobs(tmp_path: Path):
    for number in (10, 9, 0):
        write_job(tmp_path, number, [f"seed={number}"], None)
    (tmp_path / "notes").mkdir()
    jobs = list(sweep_jobs(tmp_path))
    assert [job.run_dir.name for job in jobs] == ["0", "9", "10"]
    assert jobs[1].overrides == ("seed=9",)
