import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

from lmbench.report.groups import Section
from lmbench.report.rows import csv_text, run_rows, table_rows

Write = Callable[..., Path]
VALID = (120.0, 121.0, 125.0)


def read_csv(rows: list[dict]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(rows))))


def test_the_csv_has_all_digits_and_a_row_for_each_group(section: Section):
    first, second = read_csv(table_rows(section))
    assert first["label"] == "lstm"
    assert float(first["valid_ppl_mean"]) == sum(VALID) / 3
    assert float(first["valid_ppl_half_width"]) == pytest.approx(
        stats.sem(VALID) * stats.t.ppf(0.975, 2), rel=1e-14
    )
    assert float(first["best_test_ppl"]) == 110
    assert first["best_run_dir"].endswith("a0")
    assert (first["cache_test_num_runs"], first["cache_valid_num_runs"]) == ("2", "0")
    assert float(first["floor_test_ppl"]) == 99.25
    assert float(first["peak_memory_bytes_max"]) == 1.5 * 2**30
    assert second["valid_ppl_half_width"] == second["test_ppl_mean"] == ""


def test_the_other_csv_has_a_row_for_each_run(section: Section):
    rows = read_csv(run_rows(section))
    assert [(row["group"], row["seed"]) for row in rows] == [
        ("1", "0"),
        ("1", "1"),
        ("1", "2"),
        ("2", "1"),
    ]
    assert [float(row["valid_ppl"]) for row in rows] == [*VALID, 200]
    assert [row["cache_test_ppl"] for row in rows] == ["90.0", "91.0", "", ""]
    assert rows[0]["cache_test_protocol"] == "protocol standard, columns 64, burn-in 512"


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_a_text_is_not_a_formula(text: str):
    rows = [{text: -1.5, "other": text}, {"other": -2}]
    found = [*csv.reader(io.StringIO(csv_text(rows)))]
    assert found == [[f"'{text}", "other"], ["-1.5", f"'{text}"], ["", "-2"]]


def test_no_rows_are_an_empty_csv():
    assert csv_text([]) == "\n"
