"""Statistics against SciPy's own tests, textbook values and plain loops."""

import math

import numpy as np
import pytest
from scipy import stats

from lmbench.report.statistics import (
    NUM_RESAMPLES,
    SEED,
    Estimate,
    bootstrap_means,
    bootstrap_test,
    estimate,
    holm,
    t_test,
)


@pytest.mark.parametrize("size", [2, 3, 10])
def test_the_interval_of_a_mean_matches_scipy(size: int):
    values = np.random.default_rng(size).normal(110, 3, size)
    found = estimate(values.tolist())
    low, high = stats.t.interval(0.95, size - 1, values.mean(), stats.sem(values))
    assert found.half_width is not None
    assert found.mean - found.half_width == pytest.approx(low, rel=1e-12)
    assert found.mean + found.half_width == pytest.approx(high, rel=1e-12)
    assert found.num_values == size


def test_three_seeds_by_hand():
    """Student's table: t with 2 degrees of freedom is 4.303 at 95%; 1, 2, 3 have deviation 1."""
    found = estimate([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)


def test_one_seed_has_no_interval():
    assert estimate([5.0]) == Estimate(5.0, None, 1)


def test_welch_needs_two_values_per_side_and_some_variation():
    assert t_test([1.0], [2.0, 3.0], is_paired=False) is None
    assert t_test([1.0, 2.0], [], is_paired=False) is None
    assert t_test([1.0, 1.0], [2.0, 2.0], is_paired=False) is None
    assert t_test([1.0, 1.0], [2.0, 3.0], is_paired=False) is not None


@pytest.mark.parametrize("size", [3, 6, 7, 10])
def test_equal_values_do_not_vary_however_their_mean_is_rounded(size: int):
    assert t_test([0.1] * size, [0.3] * size, is_paired=False) is None
    # With one side constant, Welch's test is a one-sample test against that value.
    varying = [0.1, 0.4, 0.3, 0.6]
    for fixed in ([0.1] * size, [0.3] * size):
        found = t_test(fixed, varying, is_paired=False)
        assert found is not None
        assert found.p == pytest.approx(stats.ttest_1samp(varying, fixed[0]).pvalue, rel=1e-9)


def test_the_paired_test_needs_two_pairs_whose_differences_differ():
    assert t_test([1.0], [2.0], is_paired=True) is None
    assert t_test([0.1, 0.4, 0.3], [0.1 + 0.2, 0.4 + 0.2, 0.3 + 0.2], is_paired=True) is None
    assert t_test([0.1, 0.4, 0.3], [0.3, 0.6, 0.5 + 1e-9], is_paired=True) is not None


@pytest.mark.parametrize("values_at_once", [10**9, 60])
def test_resampled_means_are_those_of_a_plain_loop(
    values_at_once: int, monkeypatch: pytest.MonkeyPatch
):
    """In one piece, and in pieces of 3 resamples."""
    monkeypatch.setattr("lmbench.report.statistics.NUM_RESAMPLES", 50)
    monkeypatch.setattr("lmbench.report.statistics._VALUES_AT_ONCE", values_at_once)
    rng = np.random.default_rng(3)
    num_tokens = rng.integers(1, 900, 17)
    sums = -rng.gamma(3, 1, (2, 17)) * num_tokens
    found = bootstrap_means(sums, num_tokens)
    draws = np.random.default_rng(SEED).integers(17, size=(50, 17))
    for group in range(2):
        for resample in range(50):
            nats = tokens = 0.0
            for article in draws[resample]:
                nats += sums[group, article]
                tokens += num_tokens[article]
            assert found[group, resample] == pytest.approx(nats / tokens, rel=1e-12)


def test_the_bootstrap_interval_matches_scipy():
    rng = np.random.default_rng(5)
    num_tokens = rng.integers(500, 5000, 60)
    differences = rng.normal(0.02, 0.1, 60) * num_tokens
    resampled = bootstrap_means(differences[None], num_tokens)[0]
    mean = differences.sum() / num_tokens.sum()
    found = bootstrap_test(mean, resampled, 60)
    expected = stats.bootstrap(
        (differences, num_tokens),
        lambda nats, tokens, axis: nats.sum(axis) / tokens.sum(axis),
        paired=True,
        n_resamples=10_000,
        method="percentile",
        # Hesterberg 2015: quantiles further out, for 60 articles.
        confidence_level=1 - 2 * stats.norm.cdf(-math.sqrt(60 / 59) * stats.t.ppf(0.975, 59)),
        rng=np.random.default_rng(1),
    )
    # With other draws, 10,000 of them, a quantile's error is about 2% of the interval's width.
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.03 * width)
    # The normal approximation, good for 60 articles.
    z = mean / expected.standard_error
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.03)


def test_on_normal_articles_of_equal_length_the_bootstrap_is_students_test():
    """With 20 articles, a plain percentile interval is 9% too narrow, and its p too small."""
    widths = []
    texts = np.random.default_rng(20).normal(0.1, 0.2, (20, 20))
    means = bootstrap_means(texts, np.ones(20, np.int64))
    for of_article, resampled in zip(texts, means, strict=True):
        found = bootstrap_test(of_article.mean(), resampled, 20)
        low, high = stats.t.interval(0.95, 19, of_article.mean(), stats.sem(of_article))
        widths.append((found.high - found.low) / (high - low))
        assert found.p == pytest.approx(stats.ttest_1samp(of_article, 0.0).pvalue, abs=0.02)
    assert np.mean(widths) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("num_articles", [20, 60])
def test_p_values_reject_as_often_as_they_should(
    num_articles: int, monkeypatch: pytest.MonkeyPatch
):
    """With no effect, in 5.1% and 5.7% of cases; plain percentile intervals in 7.5% and 6.8%."""
    monkeypatch.setattr("lmbench.report.statistics.NUM_RESAMPLES", 2_000)
    rng = np.random.default_rng(7)
    num_tokens = rng.gamma(4, 250, num_articles).astype(np.int64) + 1
    texts = rng.normal(0, 0.3, (1000, num_articles)) * num_tokens
    for effect, expected, tolerance in ((0.0, 0.055, 0.015), (0.5, 1.0, 0.01)):
        shifted = texts + effect * num_tokens
        tests = [
            bootstrap_test(float(text.sum() / num_tokens.sum()), one, num_articles)
            for text, one in zip(shifted, bootstrap_means(shifted, num_tokens), strict=True)
        ]
        rejected = np.mean([test.p < 0.05 for test in tests])
        assert rejected == pytest.approx(expected, abs=tolerance)
        excluded = np.mean([not test.low <= 0 <= test.high for test in tests])
        assert rejected == pytest.approx(excluded, abs=0.005)


def test_no_p_value_is_zero_and_none_above_one():
    """At least a normal tail of 1 in 100,001, which Student's t with 19 degrees makes larger."""
    far = bootstrap_test(5.0, np.full(NUM_RESAMPLES, 5.0), 20)
    quantile = stats.norm.ppf(1 / (NUM_RESAMPLES + 1)) * math.sqrt(19 / 20)
    assert far.p == pytest.approx(2 * stats.t.cdf(quantile, 19))
    assert bootstrap_test(0.0, np.zeros(NUM_RESAMPLES), 20).p == 1


def test_holm_by_hand():
    """4 × .005, 3 × .01, then 2 × .03, below which .04 cannot fall."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    first, second, third = holm([math.nan, 0.03, 0.02])
    assert math.isnan(first)
    assert (second, third) == pytest.approx((0.04, 0.04))


@pytest.mark.parametrize("level", [0.01, 0.05, 0.3])
def test_holm_rejects_what_the_step_down_procedure_rejects(level: float):
    """Holm 1979: from the smallest p on, reject while p <= level / (number left)."""
    for seed in range(20):
        p_values = (np.random.default_rng(seed).random(12) ** 3).tolist()
        rejected, left = set(), list(range(12))
        while left:
            smallest = min(left, key=lambda index: p_values[index])
            if p_values[smallest] > level / len(left):
                break
            rejected.add(smallest)
            left.remove(smallest)
        assert {index for index, p in enumerate(holm(p_values)) if p <= level} == rejected
