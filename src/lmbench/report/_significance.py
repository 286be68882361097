"""Which differences between groups are significant: on other text, and with other seeds."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

import numpy as np

from lmbench.errors import UserError
from lmbench.report.groups import Group, Section
from lmbench.report.records import Records, read_records
from lmbench.report.runs import Run, Skipped
from lmbench.report.statistics import (
    Difference,
    bootstrap_means,
    bootstrap_test,
    holm,
    t_test,
)

LEVEL = 0.05
"""Adjusted p-values below it count as significant."""

OWN_PREDICTIONS = ("standard", "awd_lstm_lm")
"""Evaluations without cache or learning: they are about the models themselves, as the scores are
that the training runs end with."""

MOST_COMPARED = 20
"""The most groups of which all pairs are tested: those of a thousand would take minutes, and p
would have to be adjusted for half a million tests."""

LEAST_UNITS = 20
"""The fewest articles or blocks that the bootstrap draws from: with fewer, even its expanded
intervals are too narrow if articles differ much."""


@dataclass(frozen=True)
class Comparison:
    """One test of the difference between two groups, in nats per token or in accuracy.

    Attributes:
        first: The group with the lower validation perplexity.
        second: The other; the difference is this one's mean minus the first one's.
        test: The difference, its interval and p-value.
        test_name: "Welch", "paired t" or "bootstrap".
        num_seeds: Numbers of seeds of the first group and of the second.
        unit: What is drawn: "seed", "article" or "block"; of minimal pairs, "pair" or "paradigm".
        num_units: How many units there were to draw from; None for a test over seeds.
        evaluation: Name of the evaluation whose results were compared; None for the scores that
            the training runs ended with, and for minimal pairs.
        adjusted_p: p, adjusted for all pairs together (Holm).
    """

    first: Group
    second: Group
    test: Difference
    test_name: str
    num_seeds: tuple[int, int]
    unit: str = "seed"
    num_units: int | None = None
    evaluation: str | None = None
    adjusted_p: float = 1.0

    @property
    def ratio(self) -> float:
        """The second group's perplexity over the first one's, for a difference in nats."""
        return math.exp(min(self.test.difference, 700.0))

    @property
    def is_significant(self) -> bool:
        """Whether the adjusted p is below :data:`LEVEL`."""
        return self.adjusted_p < LEVEL

    @property
    def significance_text(self) -> str:
        """Whether it is significant, in words."""
        return "significant" if self.is_significant else "not significant"


def compare_over_seeds(section: Section, split: str) -> list[Comparison]:
    """A t-test for each pair of groups with at least two seeds each, on nats per token.

    The scores that the runs ended with are compared, and those of each evaluation that is not one
    of :data:`OWN_PREDICTIONS`, between groups that read the split in the same way. If there are
    more than :data:`MOST_COMPARED` of these, only the best are compared. p is adjusted for the
    pairs of one evaluation.

    The test is Welch's, or the paired one if runs of both groups go back to the same weights, or to
    those of runs with the same config and seed, as finetuned runs and those they started from do;
    runs without a partner are then left out.
    """
    comparisons: list[Comparison] = []
    names = [name for name in section.evaluation_names if name not in OWN_PREDICTIONS]
    for evaluation in (None, *names):
        read_alike: dict[str, list[tuple[Group, Mapping[Hashable, float]]]] = {}
        for group in section.groups:
            protocol, nats = group.protocol_of(split, evaluation), _nats(group, split, evaluation)
            if protocol is not None and len(nats) > 1:
                read_alike.setdefault(protocol, []).append((group, nats))
        tested = [
            replace(comparison, evaluation=evaluation)
            for members in read_alike.values()
            for (first, first_nats), (second, second_nats) in combinations(
                members[:MOST_COMPARED], 2
            )
            if (comparison := compare_runs(first, second, (first_nats, second_nats)))
        ]
        tested.sort(key=lambda comparison: (comparison.first.number, comparison.second.number))
        comparisons += adjusted(tested)
    return comparisons


def _nats(group: Group, split: str, evaluation: str | None) -> dict[Hashable, float]:
    def nats_of(run: Run) -> float | None:
        score = run.score(split, evaluation)
        return score and score.nll

    return means_by_origin(group, nats_of)


def means_by_origin(group: Group, value_of: Callable[[Run], float | None]) -> dict[Hashable, float]:
    """Means of a value over the runs whose weights go back to the same ones, by origin."""
    values: dict[Hashable, list[float]] = {}
    for origin, run in zip(group.origins, group.runs, strict=True):
        if (value := value_of(run)) is not None:
            values.setdefault(origin, []).append(value)
    return {origin: fmean(values) for origin, values in values.items()}


def compare_runs(
    first: Group, second: Group, sides: Sequence[Mapping[Hashable, float]]
) -> Comparison | None:
    """The t-test of two groups on their :func:`means_by_origin`: paired if they share two or more.

    Returns:
        None if there are too few values.
    """
    common = [origin for origin in sides[0] if origin in sides[1]]
    common = common if len(common) > 1 else []  # of one pair, no test could tell anything
    values = [[side[origin] for origin in common or side] for side in sides]
    test = t_test(*values, is_paired=bool(common))
    name, num_seeds = "paired t" if common else "Welch", (len(values[0]), len(values[1]))
    return test and Comparison(first, second, test, name, num_seeds)


def compare_over_text(section: Section, split: str) -> tuple[list[Comparison], list[Skipped]]:
    """The bootstrap over articles, for each pair of groups with records of the same tokens.

    Records are compared if their evaluations have the same name and read the split in the same way;
    of more than :data:`MOST_COMPARED` groups with such records, those of the best ones. What is
    compared is the mean over a group's seeds of each token's log-probability.

    Returns:
        The comparisons, and the records that cannot be used.
    """
    skipped: list[Skipped] = []
    comparisons: list[Comparison] = []
    for name in section.evaluation_names:
        texts: dict[tuple[str, str], list[tuple[Group, list[Records]]]] = {}
        for group in section.groups:
            protocol = group.protocol_of(split, name)
            if protocol is None:
                continue  # the table of perplexities says so
            if records := list(_records(group, name, split, skipped)):
                texts.setdefault((protocol, records[0].text), []).append((group, records))
        tested = [
            comparison for members in texts.values() for comparison in _compare(name, members)
        ]
        comparisons += adjusted(tested)
    return comparisons, skipped


def _records(group: Group, name: str, split: str, skipped: list[Skipped]) -> Iterator[Records]:
    """The records of the runs; the first run's say which tokens count."""
    text = None
    for evaluation in group.evaluations(name, split):
        path = evaluation.records
        if path is None:
            continue
        try:
            records = read_records(path, evaluation.score)
            text = text or records.text
            if records.text != text:
                raise UserError("Its tokens are not those of the other seeds' records.")
            if len(records.num_tokens) < LEAST_UNITS:
                raise UserError(
                    f"A test over the text draws {records.unit}s and needs at least {LEAST_UNITS} "
                    f"of them; there are only {len(records.num_tokens)}."
                )
            yield records
        except UserError as error:
            skipped.append(Skipped(path, str(error)))


def _compare(name: str, members: Sequence[tuple[Group, list[Records]]]) -> Iterator[Comparison]:
    members = members[:MOST_COMPARED]
    if len(members) < 2:
        return
    any_records = members[0][1][0]
    num_tokens, num_units = any_records.num_tokens, len(any_records.num_tokens)
    sums = np.stack(
        [np.mean([record.sums for record in records], axis=0) for _, records in members]
    )
    means = sums.sum(axis=1) / num_tokens.sum()
    resampled = bootstrap_means(sums, num_tokens)
    for (i, (first, own)), (j, (second, others)) in combinations(enumerate(members), 2):
        difference = float(means[i] - means[j])
        test = bootstrap_test(difference, resampled[i] - resampled[j], num_units)
        num_seeds = len(own), len(others)
        yield Comparison(
            first, second, test, "bootstrap", num_seeds, any_records.unit, num_units, name
        )


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons, with p adjusted for all of them together (Holm 1979)."""
    p_values = holm([pair.test.p for pair in comparisons])
    return [replace(pair, adjusted_p=p) for pair, p in zip(comparisons, p_values, strict=True)]
