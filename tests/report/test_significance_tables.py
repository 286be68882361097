import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmbench.report.groups import Section
from lmbench.report.rows import csv_text
from lmbench.report.significance import Comparison, compare_over_seeds, compare_over_text
from lmbench.report.significance_tables import (
    SIGNIFICANCE_COLUMNS,
    significance_rows,
    significance_table,
)
from lmbench.report.statistics import Difference

Write = Callable[..., Path]
Read = Callable[[Path], Section]


def comparison(
    section: Section, *, difference: float, low: float, high: float, p: float, adjusted_p: float
) -> Comparison:
    first, second, _ = section.groups
    test = Difference(difference, low, high, p)
    return Comparison(
        first, second, test, "article", (2, 3), False, "standard", 30, adjusted_p=adjusted_p
    )


def test_a_row_of_the_table(three_models: Path, section_of: Read):
    section = section_of(three_models)
    made = comparison(section, difference=-0.1, low=-0.2, high=0.3, p=0.0123, adjusted_p=0.0456)
    table, minus = significance_table(section, [made], "Over the text"), "\N{MINUS SIGN}"
    assert dict(zip(table.columns, table.rows[0], strict=True)) == {
        "groups": "1 and 2",
        "evaluation": "standard",
        "seeds": "2 and 3",
        "drawn from": "30 articles",
        "difference in nats per token [95% interval]": f"{minus}0.1000 [{minus}0.2000, +0.3000]",
        # Powers of e by hand: e^-0.1, e^-0.2, e^0.3.
        "ratio of perplexities [95% interval]": "0.9048 [0.8187, 1.3499]",
        "p": "0.012",
        "p, all pairs (Holm)": "0.046",
        "holds": "yes",
    }


def test_a_row_of_the_csv(three_models: Path, section_of: Read):
    section = section_of(three_models)
    made = comparison(section, difference=-0.1, low=-0.2, high=0.3, p=0.0123, adjusted_p=0.0556)
    text = csv_text(significance_rows([made], "test"), SIGNIFICANCE_COLUMNS)
    (row,) = csv.DictReader(io.StringIO(text))
    assert row == {
        "corpus": "text",
        "corpus_sha256": section.corpus.sha256,
        "split": "test",
        "test": "bootstrap",
        "evaluation": "standard",
        "first_group": "1",
        "first_label": "a",
        "second_group": "2",
        "second_label": "b",
        "first_num_seeds": "2",
        "second_num_seeds": "3",
        "drawn": "article",
        "num_drawn": "30",
        "difference_nats_per_token": "-0.1",
        "low": "-0.2",
        "high": "0.3",
        "perplexity_ratio": "0.9048374180359595",
        "p": "0.0123",
        "p_holm": "0.0556",
        "verdict": "does not hold",
    }


def test_verdicts(three_models: Path, section_of: Read):
    comparisons, _ = compare_over_text(section_of(three_models), "test")
    verdicts = [row["verdict"] for row in significance_rows(comparisons, "test")]
    assert verdicts == ["holds", "does not hold", "holds"]


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
    assert table.notes[0].startswith("Shown are the 7 pairs with group 3, the best of those that")


def test_of_many_groups_each_evaluation_has_a_best(
    tmp_path: Path, write_run: Write, write_records: Write, section_of: Read
):
    """Group 1 was read with a cache alone, groups 2 and 3 both ways, the others without."""
    for number in range(1, 11):
        run_dir = write_run(tmp_path / str(number), model=f"m{number:02}", valid=100 + number)
        for name in ("cache",) * (number < 4) + ("standard",) * (number > 1):
            write_records(run_dir, 0.1 * number, number, name=name)
    section = section_of(tmp_path)
    comparisons, _ = compare_over_text(section, "test")
    assert len(comparisons) == 3 + 9 * 8 / 2
    table = significance_table(section, comparisons, "")
    assert [row[:2] for row in table.rows] == [
        ["1 and 2", "cache"],
        ["1 and 3", "cache"],
        *([f"2 and {other}", "standard"] for other in range(3, 11)),
    ]
    assert table.notes[0].startswith("Shown are the 10 pairs with group 1 or 2, the best of those")


def test_of_very_many_groups_the_best_are_tested(
    tmp_path: Path, write_run: Write, write_records: Write, section_of: Read
):
    for number in range(22):
        for seed in (1, 2):
            valid = 100 + 10 * number + seed
            run_dir = write_run(
                tmp_path / f"{number}_{seed}", model=f"m{number:02}", seed=seed, valid=valid
            )
        write_records(run_dir, 0.01 * number, number)
    section = section_of(tmp_path)
    for comparisons in (
        compare_over_seeds(section, "valid"),
        compare_over_text(section, "test")[0],
    ):
        assert len(comparisons) == 20 * 19 / 2
        assert {one.second.number for one in comparisons} == {*range(2, 21)}
        table = significance_table(section, comparisons, "")
        assert "the best 20" in table.notes[1]


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
