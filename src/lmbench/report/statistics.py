"""Intervals and tests: over seeds by Student's t, over a text by resampling its articles.

Shape letters: G groups, A articles or blocks of a text, R resamples.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 100_000
"""So many that p can fall to 5e-4 for 20 articles and to 8e-5 for 60: small enough to stay below
0.05 after Holm's correction for 90 and 600 pairs."""

SEED = 20_170_807
"""Seed of the resampling: the same records give the same intervals, on every machine."""

_VALUES_AT_ONCE = 2**20  # what stays in a processor's cache is counted fastest


class Estimate(NamedTuple):
    """A mean over seeds, half the width of its 95% interval, and the number of values.

    A single value has no interval: its half width is None.
    """

    mean: float
    half_width: float | None
    num_values: int


class Difference(NamedTuple):
    """A difference, with its 95% interval and a two-sided p-value (null hypothesis: it is zero)."""

    difference: float
    low: float
    high: float
    p: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% interval (Student 1908), as if the seeds' values were normally distributed.

    Args:
        values: Values of independent seeds, at least one.
    """
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    array, half_width = np.asarray(values, np.float64), None
    if len(array) > 1:
        standard_error = array.std(ddof=1) / math.sqrt(len(array))
        half_width = float(stdtrit(len(array) - 1, (1 + CONFIDENCE) / 2) * standard_error)
    return Estimate(float(array.mean()), half_width, len(array))


def t_test(
    first: Sequence[float], second: Sequence[float], *, is_paired: bool
) -> Difference | None:
    """Mean of the second minus mean of the first: Welch's test (1947), or Student's for pairs.

    Args:
        first: Values of independent seeds.
        second: Those of others or, if paired, those that belong to the first ones, in their order.
        is_paired: Whether the values are pairs.

    Returns:
        None if a side has fewer than two values, or nothing varies: the values of either side or,
        if paired, the differences.
    """
    from scipy import stats

    sides = [np.asarray(side, np.float64) for side in (first, second)]
    if min(map(len, sides)) < 2:
        return None
    # Rounding gives equal values a variance that is not quite zero.
    varying = [sides[1] - sides[0]] if is_paired else sides
    if all(np.ptp(values) <= 1e-12 * np.abs(sides[0]).max() for values in varying):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss occurred")  # where one side is constant
        test: Any = (
            stats.ttest_rel(sides[1], sides[0])
            if is_paired
            else stats.ttest_ind(sides[1], sides[0], equal_var=False)
        )
    interval = test.confidence_interval(CONFIDENCE)
    difference = sides[1].mean() - sides[0].mean()
    return Difference(*map(float, (difference, interval.low, interval.high, test.pvalue)))


def bootstrap_means(sums: np.ndarray, num_tokens: np.ndarray) -> np.ndarray:
    """Means per token over texts made of articles drawn with replacement, as ratios of sums.

    Neighbouring tokens depend on each other and articles hardly do, so articles are what is drawn
    (Koehn 2004 draws sentences of a translation). All groups see the same draws: their differences
    are paired.

    Args:
        sums: ``(G, A)``, of log-probabilities in nats, over each article's tokens.
        num_tokens: ``(A,)``, of each article.

    Returns:
        ``(G, R)``, in nats per token.
    """
    rng = np.random.default_rng(SEED)
    num_articles = len(num_tokens)
    at_once = max(1, _VALUES_AT_ONCE // num_articles)
    means = np.empty((len(sums), NUM_RESAMPLES))
    for start in range(0, NUM_RESAMPLES, at_once):
        stop = min(start + at_once, NUM_RESAMPLES)
        draws = rng.integers(num_articles, size=(stop - start, num_articles))
        draws += np.arange(stop - start)[:, None] * num_articles  # counts each resample separately
        times = np.bincount(draws.ravel(), minlength=draws.size).reshape(draws.shape)
        times = times.astype(np.float64)  # for BLAS, which has no integers
        means[:, start:stop] = sums @ times.T / (times @ num_tokens)
    return means


def bootstrap_test(difference: float, resampled: np.ndarray, num_units: int) -> Difference:
    """Expanded percentile interval of a difference, and the p-value at which it reaches zero.

    With few units, the plain percentile interval is too narrow: it has the normal distribution's
    width instead of Student's, and resamples vary less than texts, by (n − 1) / n. The expanded one
    takes quantiles further out (Hesterberg 2015, "What Teachers Should Know About the Bootstrap",
    The American Statistician 69(4)): Φ(−√(n / (n − 1)) · t) instead of α / 2, with Student's t of
    n − 1 degrees of freedom at 1 − α / 2. Efron and Tibshirani 1993, chapter 15, relate such an
    interval to a test.

    Args:
        difference: The text's own difference.
        resampled: ``(R,)`` those of the resampled texts.
        num_units: Articles or blocks that were drawn from, n; at least 2.
    """
    from scipy.special import ndtr, ndtri, stdtr, stdtrit

    t = stdtrit(num_units - 1, (1 + CONFIDENCE) / 2)
    outside = ndtr(-math.sqrt(num_units / (num_units - 1)) * t)
    # Sorted first, the quantiles of 100,000 take a quarter of the time.
    low, high = np.quantile(np.sort(resampled), [outside, 1 - outside])
    rarer = int(min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0)))
    # The text itself counts as one more resample: no p-value is zero (Davison, Hinkley 1997, 4.2.1)
    z = math.sqrt((num_units - 1) / num_units) * ndtri((rarer + 1) / (len(resampled) + 1))
    p = min(1.0, 2 * float(stdtr(num_units - 1, z)))
    return Difference(difference, float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for all tests of a family, in the order of the tests (Holm 1979).

    A nan stays one and does not count as a test.
    """
    p = np.array(p_values, np.float64)
    order = np.argsort(p, kind="stable")  # nan comes last
    num_left = np.count_nonzero(~np.isnan(p)) - np.arange(len(p))
    p[order] = np.maximum.accumulate(p[order] * num_left).clip(max=1.0)
    return p.tolist()
