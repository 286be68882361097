import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmbench.report.groups import Section
from lmbench.report.rows import csv_text
from lmbench.report.significance import compare_over_seeds, compare_over_text
from lmbench.report.significance_tables import significance_rows, significance_table

Write = Callable[..., Path]
Read = Callable[[Path], Section]


def test_the_table_and_the_csv(three_models: Path, section_of: Read):
    section = section_of(three_models)
    comparisons = compare_over_text(section, "test")[0]
    table = significance_table(section, comparisons, "Over the text")
    row = dict(zip(table.columns, table.rows[0], strict=True))
    test = comparisons[0].test
    assert row["groups"] == "1 and 2"
    assert row["drawn from"] == "30 articles"
    assert row["difference in nats per token"].startswith(f"+{test.difference:.4f} [+")
    assert row["ratio of perplexities"].startswith(f"{np.exp(test.difference):.4f} [")
    assert (row["p"], row["p, all pairs (Holm)"], row["holds"]) == ("< 0.001", "< 0.001", "yes")
    assert table.rows[2][4].startswith("\N{MINUS SIGN}0.")
    rows = list(csv.DictReader(io.StringIO(csv_text(significance_rows(comparisons, "test")))))
    assert [float(row["p"]) for row in rows] == [one.test.p for one in comparisons]
    assert float(rows[0]["low"]) == test.low
    assert rows[0]["test"] == "bootstrap"
    assert [row["verdict"] for row in rows] == ["holds", "does not hold", "holds"]


def test_of_many_groups_the_page_shows_the_pairs_with_the_best(
    tmp_path: Path, write_run: Write, section_of: Read
):
    for number in range(20):
        config = {"optimizer.lr": number // 2}
        write_run(
            tmp_path / str(number), seed=number, valid=100 + number, test=90 + number, config=config
        )
    section = section_of(tmp_path)
    comparisons = compare_over_seeds(section, "test")
    table = significance_table(section, comparisons, "")
    assert len(comparisons) == 45
    assert [row[0] for row in table.rows] == [f"1 and {other}" for other in range(2, 11)]
    assert "significance.csv has all 45" in table.notes[0]


def test_of_many_groups_the_best_may_not_be_tested(
    tmp_path: Path, write_run: Write, section_of: Read
):
    """The best has a single seed, the next was evaluated otherwise."""
    for number in range(1, 20):
        config, results = {"optimizer.lr": number // 2}, {}
        if number // 2 == 1:
            results = {"evaluation.columns": 1}
        valid = 100 + number
        write_run(
            tmp_path / str(number),
            seed=number,
            valid=valid,
            test=valid - 10,
            config=config,
            results=results,
        )
    section = section_of(tmp_path)
    comparisons = compare_over_seeds(section, "test")
    table = significance_table(section, comparisons, "")
    assert len(comparisons) == 8 * 7 / 2
    assert [row[0] for row in table.rows] == [f"3 and {other}" for other in range(4, 11)]
    assert table.notes[0].startswith("Shown are the 7 pairs with group 3; significance.csv has all")


def test_a_paired_test_is_named(tmp_path: Path, write_run: Write, section_of: Read):
    for seed, (parent, child) in enumerate([(100.0, 98.0), (120.0, 117.0)], start=1):
        write_run(tmp_path / f"p{seed}", seed=seed, valid=parent, test=parent)
        config = {"init_from": f"p{seed}"}
        write_run(tmp_path / f"f{seed}", seed=seed, valid=child, test=child, config=config)
        write_run(tmp_path / f"o{seed}", model="other", seed=seed, valid=parent + 30, test=parent)
    section = section_of(tmp_path)
    comparisons = compare_over_seeds(section, "test")
    table = significance_table(section, comparisons, "")
    assert [row[:2] for row in table.rows] == [
        ["1 and 2", "seeds, paired"],
        ["1 and 3", "seeds"],
        ["2 and 3", "seeds"],
    ]
    names = [row["test"] for row in significance_rows(comparisons, "test")]
    assert names == ["paired t", "Welch", "Welch"]


def test_few_articles_have_no_verdict_in_either(
    tmp_path: Path, write_run: Write, write_records: Write, section_of: Read
):
    for model, shift in (("a", 0.0), ("b", 0.5)):
        run_dir = write_run(tmp_path / model, model=model)
        write_records(run_dir, shift, ord(model), num_articles=3)
    section = section_of(tmp_path)
    comparisons, _ = compare_over_text(section, "test")
    table = significance_table(section, comparisons, "")
    difference = comparisons[0].test.difference
    assert table.rows[0][3:] == [
        "3 articles",
        f"{difference:+.4f}",
        f"{np.exp(difference):.4f}",
        "—",
        "—",
        "too few",
    ]
    assert table.notes[0].startswith("Too few: with fewer than 20 to draw from")
    (row,) = csv.DictReader(io.StringIO(csv_text(significance_rows(comparisons, "test"))))
    assert row["verdict"] == "none: too few articles"
    assert float(row["difference_nats_per_token"]) == difference
    assert [row[key] for key in ("low", "high", "p", "p_holm")] == [""] * 4


@pytest.mark.parametrize("num_models", [14, 15])
def test_more_pairs_than_resampling_can_tell_apart(
    tmp_path: Path, write_run: Write, write_records: Write, section_of: Read, num_models: int
):
    """91 pairs and 105: the smallest p over 20 articles is 0.00054, in 19 degrees of freedom."""
    for number in range(num_models):
        run_dir = write_run(tmp_path / str(number), model=f"m{number:02}", valid=100 + number)
        write_records(run_dir, 0.5 * number, number, num_articles=20)
    section = section_of(tmp_path)
    comparisons, _ = compare_over_text(section, "test")
    notes = significance_table(section, comparisons, "").notes
    said = [note for note in notes if "no difference can hold" in note]
    if num_models == 14:
        assert all(one.holds for one in comparisons)
        assert not said
    else:
        assert not any(one.holds for one in comparisons)
        assert [note.partition(":")[0] for note in said] == ["standard"]
        assert "adjusted for 105 pairs" in said[0]
