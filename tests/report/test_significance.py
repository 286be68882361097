import csv
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lmbench.report.conclusions import conclusions
from lmbench.report.groups import Section, group_runs
from lmbench.report.rows import csv_text
from lmbench.report.runs import read_runs
from lmbench.report.significance import (
    compare_over_seeds,
    compare_over_text,
    significance_rows,
    significance_table,
)
from lmbench.report.statistics import NUM_RESAMPLES, SEED

Write = Callable[..., Path]
ARTICLES = np.repeat(np.arange(30), 40)
HARDNESS = np.random.default_rng(0).gamma(2, 2, 1_200)


def read(folder: Path) -> Section:
    (section,) = group_runs(read_runs([folder])[0])[0]
    return section


def nats(shift: float, seed: int) -> np.ndarray:
    """Log-probabilities that differ from those of others by a shift and some noise."""
    noise = np.random.default_rng(seed).normal(0, 0.05, 1_200)
    return -np.maximum(HARDNESS + shift + noise, 0).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, write_run: Write, write_evaluation: Write) -> Path:
    """Two seeds each of three models: b is worse than a in every article, c as good as a."""
    for model, shift, valid in (("a", 0.0, 100.0), ("b", 0.1, 120.0), ("c", 0.0, 130.0)):
        for seed in (1, 2):
            run_dir = write_run(
                tmp_path / f"{model}{seed}",
                model=model,
                seed=seed,
                valid=valid + seed,
                test=valid * (1 + 0.01 * seed),
            )
            values = nats(shift, 100 * ord(model) + seed)
            write_evaluation(run_dir, log_probabilities=values, articles=ARTICLES)
    return tmp_path


def test_the_bootstrap_is_that_of_a_plain_loop(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lmbench.report.statistics.NUM_RESAMPLES", 200)
    comparisons, left_out = compare_over_text(read(folder), "test")
    assert not left_out
    assert [(one.first.model, one.second.model) for one in comparisons] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    of_token = {
        model: np.mean(
            [nats(shift, 100 * ord(model) + seed).astype("f8") for seed in (1, 2)], axis=0
        )
        for model, shift in (("a", 0.0), ("b", 0.1), ("c", 0.0))
    }
    draws = np.random.default_rng(SEED).integers(30, size=(200, 30))
    for comparison in comparisons:
        difference = of_token[comparison.first.model] - of_token[comparison.second.model]
        assert comparison.test.difference == pytest.approx(difference.mean(), rel=1e-9)
        resampled = []
        for draw in draws:
            tokens = [difference[article == ARTICLES] for article in draw]
            resampled.append(np.concatenate(tokens).mean())
        low, high = np.percentile(resampled, [2.5, 97.5])
        assert (comparison.test.low, comparison.test.high) == pytest.approx((low, high), rel=1e-6)
        assert (comparison.unit, comparison.num_units) == ("article", 30)
        assert comparison.num_seeds == (2, 2)


def test_what_differs_holds_and_what_does_not_does_not(folder: Path):
    a_b, a_c, b_c = compare_over_text(read(folder), "test")[0]
    smallest = 2 / (NUM_RESAMPLES + 1)
    assert a_b.test.p == pytest.approx(smallest)
    assert a_b.adjusted_p == pytest.approx(3 * smallest)
    assert a_b.holds
    assert b_c.holds
    assert b_c.test.difference < 0
    assert not a_c.holds
    assert a_c.adjusted_p == a_c.test.p  # the largest of the three


def test_seeds_are_compared_by_welch(folder: Path):
    comparisons = compare_over_seeds(read(folder), "test")
    first, second = ([math.log(ppl * (1 + 0.01 * s)) for s in (1, 2)] for ppl in (100, 120))
    expected = stats.ttest_ind(second, first, equal_var=False)
    assert comparisons[0].test.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert comparisons[0].test.difference == pytest.approx(math.log(1.2))
    assert len(comparisons) == 3


def test_the_other_split(folder: Path):
    section = read(folder)
    assert compare_over_text(section, "valid") == ([], [])
    expected = np.mean([math.log(121 / 101), math.log(122 / 102)])
    assert compare_over_seeds(section, "valid")[0].test.difference == pytest.approx(expected)


def test_records_of_other_tokens_are_not_compared(
    folder: Path, write_run: Write, write_evaluation: Write
):
    run_dir = write_run(folder / "d", model="d", valid=140)
    write_evaluation(run_dir, log_probabilities=nats(0, 5)[:-1], articles=ARTICLES[:-1])
    other = write_run(folder / "e", model="e", valid=150)
    write_evaluation(other, "cache", log_probabilities=nats(0, 5), articles=ARTICLES)
    pairs = [
        (one.first.model, one.second.model) for one in compare_over_text(read(folder), "test")[0]
    ]
    assert pairs == [("a", "b"), ("a", "c"), ("b", "c")]


def test_records_that_cannot_be_used_are_named(folder: Path, write_evaluation: Write):
    cut = folder / "a1/evaluation-standard-test.parquet"
    cut.write_bytes(cut.read_bytes()[:-4])
    write_evaluation(folder / "b2", log_probabilities=nats(0, 5)[:-1], articles=ARTICLES[:-1])
    comparisons, left_out = compare_over_text(read(folder), "test")
    assert [one.num_seeds for one in comparisons] == [(1, 1), (1, 2), (1, 2)]
    assert [item.path.parent.name for item in left_out] == ["a1", "b2"]
    assert "not those of the other seeds' records" in left_out[1].reason


def test_a_single_article_cannot_be_drawn_from(tmp_path: Path, write_run: Write, write_evaluation):
    for model in "ab":
        run_dir = write_run(tmp_path / model, model=model)
        write_evaluation(run_dir, log_probabilities=nats(0, 1), articles=ARTICLES * 0)
    assert compare_over_text(read(tmp_path), "test") == ([], [])


def test_few_articles_are_warned_of(tmp_path: Path, write_run: Write, write_evaluation: Write):
    for model in "ab":
        run_dir = write_run(tmp_path / model, model=model)
        write_evaluation(run_dir, log_probabilities=nats(0, ord(model)), articles=ARTICLES // 10)
    section = read(tmp_path)
    table = significance_table(section, compare_over_text(section, "test")[0], "")
    assert table.notes == ["With fewer than 20 to draw from, these intervals are too narrow."]


def test_groups_that_were_not_evaluated_alike_are_not_compared(tmp_path: Path, write_run: Write):
    for number in range(4):
        results = {"evaluation.columns": number // 2}
        test = 100.0 + number
        write_run(tmp_path / str(number), seed=number, test=test, results=results)
    assert compare_over_seeds(read(tmp_path), "test") == []


def test_the_table_and_the_csv(folder: Path):
    section = read(folder)
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


def test_of_many_groups_the_page_shows_the_pairs_with_the_best(tmp_path: Path, write_run: Write):
    for number in range(20):
        config = {"optimizer.lr": number // 2}
        write_run(
            tmp_path / str(number), seed=number, valid=100 + number, test=90 + number, config=config
        )
    section = read(tmp_path)
    comparisons = compare_over_seeds(section, "test")
    table = significance_table(section, comparisons, "")
    assert len(comparisons) == 45
    assert [row[0] for row in table.rows] == [f"1 and {other}" for other in range(2, 11)]
    assert "significance.csv has all 45" in table.notes[0]


def said(section: Section) -> str:
    over_text, _ = compare_over_text(section, "test")
    return " ".join(conclusions(section, over_text, compare_over_seeds(section, "test"), "test"))


def test_both_must_hold(folder: Path):
    text = said(read(folder))
    assert text.startswith("1 a has the lowest valid perplexity: 101.50 ± ")
    assert "which is 20.0% higher." in text
    assert "nats per token holds (p < 0.001)" in text
    assert "Over seeds, on test, the difference of 0.1823 nats per token holds (p = 0.0" in text
    assert text.endswith("Both hold: 1 a is better than 2 b.")


def test_a_cache_says_nothing_of_the_models_themselves(folder: Path, write_evaluation: Write):
    for path in folder.glob("*/evaluation-standard-*"):
        path.rename(path.with_name(path.name.replace("standard", "cache")))
    section = read(folder)
    assert len(compare_over_text(section, "test")[0]) == 3
    assert "Over the text, the two are not tested: no standard records" in said(section)


def test_one_of_them_alone_is_not_enough(folder: Path):
    for path in folder.glob("*/evaluation-*"):
        path.unlink()
    text = said(read(folder))
    assert "Over the text, the two are not tested: no standard records" in text
    assert text.endswith("So it is not shown that either is better.")


def test_a_difference_that_other_seeds_may_not_have(
    tmp_path: Path, write_run: Write, write_evaluation: Write
):
    """Clear over the text, but the seeds of a group lie further apart than the groups."""
    for model, shift, tests in (("a", 0.0, (90.0, 120.0)), ("b", 0.1, (100.0, 130.0))):
        for seed, test in enumerate(tests):
            run_dir = write_run(
                tmp_path / f"{model}{seed}", model=model, seed=seed, valid=100 + shift, test=test
            )
            write_evaluation(run_dir, log_probabilities=nats(shift, seed), articles=ARTICLES)
    text = said(read(tmp_path))
    assert "nats per token holds (p < 0.001)" in text
    assert "nats per token does not hold (p = 0." in text
    assert text.endswith("Not both hold: it is not shown that either is better.")


def test_tests_that_point_in_opposite_directions(folder: Path, write_evaluation: Write):
    for run_dir in folder.glob("a*"):
        write_evaluation(run_dir, log_probabilities=nats(0.5, 3), articles=ARTICLES)
    assert said(read(folder)).endswith(
        "The two point in opposite directions: it is not shown that either is better."
    )


def test_a_group_alone_and_a_single_seed(tmp_path: Path, write_run: Write):
    write_run(tmp_path / "0", test=None)
    assert said(read(tmp_path)) == (
        "1 lstm has the lowest valid perplexity: 120.00, a single seed. It was not tested. There "
        "is no other group to compare it with."
    )


def test_the_best_is_sought_among_those_that_were_evaluated_as_most(
    tmp_path: Path, write_run: Write
):
    for number, columns in enumerate((1, 64, 64)):
        config, results = {"optimizer.lr": number}, {"evaluation.columns": columns}
        write_run(tmp_path / str(number), valid=100 + number, config=config, results=results)
    text = said(read(tmp_path))
    assert text.startswith("2 lstm lr=1 has the lowest valid perplexity: 101.00, a single seed.")
    assert "(Set aside, as evaluated otherwise: 1.)" in text
