from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

from lmbench.report.groups import Section, group_runs
from lmbench.report.rows import table_rows
from lmbench.report.runs import read_runs
from lmbench.report.summary import epochs_text, summary_table
from lmbench.report.table import Table

Write = Callable[..., Path]
VALID = (120.0, 121.0, 125.0)


def cells(table: Table, row: int) -> dict[str, str]:
    return dict(zip(table.columns, table.rows[row], strict=True))


def interval(values: list[float]) -> float:
    return float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


@pytest.mark.parametrize(
    ("num_epochs", "text"), [(3.0, "3"), (10.313, "10.3"), (1500.0, "1,500"), (0.04, "0")]
)
def test_epochs_are_whole_or_have_one_digit(num_epochs: float, text: str):
    assert epochs_text(num_epochs) == text


def test_the_table(section: Section):
    table = summary_table(section)
    first, second, floor = (cells(table, row) for row in range(3))
    assert first == {
        "": "1",
        "group": "lstm",
        "seeds": "3",
        "valid perplexity": f"122.00 ± {interval(list(VALID)):.2f}",
        "test perplexity": f"112.00 ± {interval(list(VALID)):.2f}",
        "best run, valid / test": "120.00 / 110.00",
        "cache, valid": "—",
        "cache, test": f"90.50 ± {interval([90, 91]):.2f} (2 of 3)",
        "parameters": "1,234,567",
        "epochs": "3 to 5",
        "minutes": "1.5",
        "tokens/s": "1,000",
        "GiB": "1.50",
    }
    assert second["valid perplexity"] == "200.00 ± —"
    assert second["test perplexity"] == "—"
    assert second["best run, valid / test"] == "200.00 / —"
    assert floor["group"] == "perplexity floor"
    assert (floor["valid perplexity"], floor["test perplexity"]) == ("101.50", "99.25")


def test_the_terminal_has_evaluations_as_rows(section: Section):
    table = summary_table(section, with_costs=False)
    assert len(table.columns) == 5
    names = [row[1] for row in table.rows]
    assert names == ["lstm", "· cache", "awd_lstm", "perplexity floor"]


def test_costs_that_are_not_known(tmp_path: Path, write_run: Write):
    unknown = dict.fromkeys(["train.seconds", "train.tokens_per_second", "train.peak_memory_bytes"])
    write_run(tmp_path / "0", results=unknown)
    (section,) = group_runs(read_runs([tmp_path])[0])[0]
    assert summary_table(section).rows[0][-3:] == ["—", "—", "—"]


def test_groups_that_were_not_evaluated_alike_are_marked(tmp_path: Path, write_run: Write):
    for number, columns in enumerate((64, 1, 64, {"valid": 10, "test": 1})):
        results = {"evaluation.columns": columns}
        config = {"optimizer.lr": number}
        write_run(tmp_path / str(number), valid=100 + number, results=results, config=config)
    (section,) = group_runs(read_runs([tmp_path])[0])[0]
    table = summary_table(section)
    assert [row[3] for row in table.rows] == [
        "100.00 ± —",
        "101.00 ± —†",
        "102.00 ± —",
        "103.00 ± —‡",
    ]
    note = table.notes[-1]
    assert note.startswith("Not all were evaluated alike")
    assert "Without a mark: protocol standard, columns 64, burn-in 512" in note
    assert "‡: protocol standard, columns 10 (valid) and 1 (test), burn-in 512" in note


def test_evaluations_that_were_not_read_alike_are_marked(
    tmp_path: Path, write_run: Write, write_evaluation: Write
):
    for number in range(2):
        run_dir = write_run(tmp_path / str(number), config={"optimizer.lr": number})
        write_evaluation(run_dir, "cache", ppl=90.0, columns=1 + number)
    (section,) = group_runs(read_runs([tmp_path])[0])[0]
    table = summary_table(section)
    assert cells(table, 0)["cache, test"] == "90.00 ± —*"
    assert table.notes[-1].startswith(
        "* cache, test: not all were read alike (protocol standard, c"
    )
    assert "no mean" not in table.notes[-1]


def test_valid_figures_of_settings_tuned_on_valid_are_told(
    tmp_path: Path, write_run: Write, write_evaluation: Write
):
    def notes() -> list[str]:
        (section,) = group_runs(read_runs([tmp_path])[0])[0]
        tables = [summary_table(section, with_costs=with_costs) for with_costs in (True, False)]
        return [note for table in tables for note in table.notes if "tuned" in note]

    run_dir = write_run(tmp_path / "0")
    write_evaluation(run_dir, "cache", "test", ppl=90.0, tuned={"num_tokens": None})
    write_evaluation(run_dir, "awd_lstm_lm", "valid", ppl=99.0)
    assert notes() == []
    for name in ("cache", "dynamic"):
        write_evaluation(run_dir, name, "valid", ppl=95.0, tuned={"num_tokens": 20_000})
    assert notes() == 2 * [
        "Settings of cache and dynamic were tuned on valid: of these, only the test figures, and "
        "tests of them, are fair."
    ]


def test_no_mean_is_given_over_seeds_that_were_not_read_alike(
    tmp_path: Path, write_run: Write, write_evaluation: Write
):
    settings = {"window": 500, "theta": 0.5, "interpolation": 0.1, "warmup": False}
    for model, valid in (("a", 100.0), ("b", 110.0), ("c", 120.0)):
        for seed in (1, 2, 3):
            run_dir = write_run(tmp_path / f"{model}{seed}", model=model, seed=seed, valid=valid)
            theta = seed if model == "a" else 0.5
            if model != "c" and seed < 3:
                how = {"cache": settings | {"theta": theta}}
                write_evaluation(run_dir, "cache", ppl=90.0 + seed, settings=how)
    (section,) = group_runs(read_runs([tmp_path])[0])[0]
    for with_costs in (True, False):
        table = summary_table(section, with_costs=with_costs)
        text = " ".join(cell for row in table.rows for cell in row)
        assert "not alike (2 of 3)*" in text
        assert f"91.50 ± {interval([91, 92]):.2f} (2 of 3)*" in text
        note = table.notes[-1]
        assert note.startswith("* cache, test: not all were read alike (protocol standard, ")
        assert "cache (window 500, theta 2, interpolation 0.1)" in note
        assert "Not even the seeds of group 1 were, so that there is no mean over them" in note
    assert cells(summary_table(section), 2)["cache, test"] == "—"
    rows = table_rows(section)
    assert [row["cache_test_ppl_mean"] for row in rows] == [None, 91.5, None]
    assert [row["cache_test_num_runs"] for row in rows] == [2, 2, 0]
    assert [row["cache_test_protocol"].count("theta") for row in rows] == [2, 1, 0]


def test_of_many_ways_of_reading_a_few_are_named(
    tmp_path: Path, write_run: Write, write_evaluation: Write
):
    for number in range(9):
        run_dir = write_run(tmp_path / str(number), config={"optimizer.lr": number})
        write_evaluation(run_dir, "cache", ppl=90.0, columns=1 + number)
    (section,) = group_runs(read_runs([tmp_path])[0])[0]
    note = summary_table(section).notes[-1]
    assert note.count("columns") == 6
    assert "; and 3 other ways), and are not to be compared." in note
