"""Intervals and tests: over seeds by Student's t, over a text by resampling its articles.

Shape letters: G groups, A articles or blocks of a text, P pairs, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 100_000
"""So many that the smallest p they can give stays small when it is adjusted for many pairs."""

SEED = 20_170_807
"""Seed of the resampling: the same records give the same intervals, on every machine."""

_VALUES_AT_ONCE = 2**20  # what stays in a processor's cache is counted fastest


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: Mean of the values.
        half_width: Half the width of its 95% interval; None where a single value gives none.
        num_values: Number of values.
    """

    mean: float
    half_width: float | None
    num_values: int


@dataclass(frozen=True)
class Difference:
    """A difference, with its 95% interval and the two-sided p-value of its being zero."""

    difference: float
    low: float
    high: float
    p: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% interval (Student 1908), as if the seeds' values were drawn from a normal one.

    Args:
        values: Values of independent seeds, at least one.
    """
    from scipy.special import stdtrit

    array, half_width = np.asarray(values, np.float64), None
    if len(array) > 1:
        standard_error = array.std(ddof=1) / math.sqrt(len(array))
        half_width = float(stdtrit(len(array) - 1, (1 + CONFIDENCE) / 2) * standard_error)
    return Estimate(float(array.mean()), half_width, len(array))


def welch_test(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Mean of the second minus mean of the first, whose variances may differ (Welch 1947).

    The degrees of freedom are Welch's (1947) and Satterthwaite's (1946).

    Args:
        first: Values of independent seeds.
        second: Likewise.

    Returns:
        None if a side has fewer than two values, or no value differs from its side's others.
    """
    from scipy.special import stdtr, stdtrit

    if min(len(first), len(second)) < 2:
        return None
    sides = [np.asarray(side, np.float64) for side in (first, second)]
    # Of the means' standard errors. Rounding gives equal values a variance that is not quite zero.
    squares = [side.var(ddof=1) / len(side) if np.ptp(side) else 0.0 for side in sides]
    variance = sum(squares)
    if not variance:
        return None
    freedom = variance**2 / sum(
        square**2 / (len(side) - 1) for square, side in zip(squares, sides, strict=True)
    )
    difference = sides[1].mean() - sides[0].mean()
    half_width = stdtrit(freedom, (1 + CONFIDENCE) / 2) * math.sqrt(variance)
    p = 2 * stdtr(freedom, -abs(difference) / math.sqrt(variance))
    return Difference(
        float(difference), float(difference - half_width), float(difference + half_width), float(p)
    )


def paired_test(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Mean of the second minus mean of the first, whose values belong together (Student 1908).

    Args:
        first: Values of independent pairs.
        second: Those that belong to them, in the same order.

    Returns:
        None if there are fewer than two pairs, or all differ alike.
    """
    from scipy.special import stdtr, stdtrit

    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    # Rounding gives equal differences a variance that is not quite zero.
    if len(differences) < 2 or np.ptp(differences) <= 1e-12 * np.abs(first).max():
        return None
    mean, freedom = float(differences.mean()), len(differences) - 1
    standard_error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    half_width = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * standard_error
    p = 2 * float(stdtr(freedom, -abs(mean) / standard_error))
    return Difference(mean, mean - half_width, mean + half_width, p)


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
        draws += np.arange(stop - start)[:, None] * num_articles  # each resample counts apart
        times = np.bincount(draws.ravel(), minlength=draws.size).reshape(draws.shape)
        times = times.astype(np.float64)  # for BLAS, which knows no integers
        means[:, start:stop] = sums @ times.T / (times @ num_tokens)
    return means


def bootstrap_test(difference: float, resampled: np.ndarray, num_units: int) -> Difference:
    """Expanded percentile interval of a difference, and the p-value at which it reaches zero.

    Of few units, the plain percentile interval is too narrow: it has the normal distribution's
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
    from scipy.special import ndtr, stdtrit

    t = stdtrit(num_units - 1, (1 + CONFIDENCE) / 2)
    outside = ndtr(-math.sqrt(num_units / (num_units - 1)) * t)
    # Sorted first, the quantiles of 100,000 take a quarter of the time.
    low, high = np.quantile(np.sort(resampled), [outside, 1 - outside])
    rarer = int(min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0)))
    # The text itself counts as one more resample: no p-value is zero (Davison, Hinkley 1997, 4.2.1)
    p = _expanded_p((rarer + 1) / (len(resampled) + 1), num_units)
    return Difference(difference, float(low), float(high), p)


def smallest_bootstrap_p(num_units: int) -> float:
    """The p-value of a difference of which all resamples have the same sign.

    Args:
        num_units: Articles or blocks that were drawn from; at least 2.
    """
    return _expanded_p(1 / (NUM_RESAMPLES + 1), num_units)


def _expanded_p(tail: float, num_units: int) -> float:
    """The two-sided p-value of the share of resamples in the smaller tail."""
    from scipy.special import ndtri, stdtr

    z = math.sqrt((num_units - 1) / num_units) * ndtri(tail)
    return min(1.0, 2 * float(stdtr(num_units - 1, z)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that hold for all tests of a family together (Holm 1979).

    Args:
        p_values: ``(P,)`` those of all tests that were made.

    Returns:
        The adjusted ones, in the same order.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    ascending = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(ascending):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
