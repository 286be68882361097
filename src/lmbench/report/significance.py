"""Which differences between groups hold: for this text, and for other seeds."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from lmbench.errors import UserError
from lmbench.report.folders import LeftOut
from lmbench.report.groups import Group, Section, protocols_of
from lmbench.report.records import Records, read_records
from lmbench.report.statistics import (
    Difference,
    bootstrap_means,
    bootstrap_test,
    holm,
    paired_test,
    welch_test,
)

LEVEL = 0.05

OWN_PREDICTIONS = ("standard", "awd_lstm_lm")
"""Evaluations without cache or learning: their records are about the models themselves."""

MOST_GROUPS = 20
"""Groups of which all pairs are tested: those of a thousand would take minutes, and p would have to
be adjusted for half a million."""

LEAST_UNITS = 20
"""Articles or blocks that the bootstrap draws from: of fewer, even its expanded intervals are too
narrow where articles differ much."""


@dataclass(frozen=True)
class Comparison:
    """One test of the difference between two groups, in nats per token.

    Attributes:
        first: The group with the lower valid perplexity.
        second: The other; the difference is this one's nats per token minus the first one's.
        test: The difference, its interval and p-value; the interval is infinite and p is 1 where
            there are too few units.
        adjusted_p: p for all pairs together (Holm), without those of too few units.
        evaluation: The evaluation whose records were compared; None for the test over seeds.
        num_units: Articles or blocks that were drawn from; None for the test over seeds.
        unit: "article", "block" or "seed".
        num_seeds: Numbers of seeds of the first group and of the second.
        is_paired: Whether the runs of the two groups go back to the same ones, each to another, or
            to ones of the same config and seed.
    """

    first: Group
    second: Group
    test: Difference
    unit: str
    num_seeds: tuple[int, int]
    is_paired: bool = False
    evaluation: str | None = None
    num_units: int | None = None
    adjusted_p: float = 1.0

    @property
    def has_too_few_units(self) -> bool:
        """Whether there is no verdict, as the text has too few articles or blocks."""
        return self.num_units is not None and self.num_units < LEAST_UNITS

    @property
    def holds(self) -> bool:
        """Whether it differs from zero, all pairs considered."""
        return not self.has_too_few_units and self.adjusted_p < LEVEL


def compare_over_seeds(section: Section, split: str) -> list[Comparison]:
    """A t-test for each pair of groups that have two seeds each, on nats per token.

    Of more than :data:`MOST_GROUPS` that were read alike, the best ones are compared.

    It is Welch's, or the paired one where runs of both groups go back to the same weights, or to
    those of runs with the same config and seed, as finetuned ones and those that they started from
    do; runs without a partner are then left out.
    """
    read_alike: dict[str, list[Group]] = {}
    for group in section.groups:
        if len(_nats(group, split)) > 1:
            read_alike.setdefault(group.protocol, []).append(group)
    comparisons = []
    for groups in read_alike.values():
        for first, second in combinations(groups[:MOST_GROUPS], 2):
            better, worse = _nats(first, split), _nats(second, split)
            common = [origin for origin in better if origin in worse]
            if common:
                better, worse = (
                    {origin: of[origin] for origin in common} for of in (better, worse)
                )
            test = (paired_test if common else welch_test)([*better.values()], [*worse.values()])
            if test is not None:
                num_seeds = len(better), len(worse)
                comparisons.append(Comparison(first, second, test, "seed", num_seeds, bool(common)))
    comparisons.sort(key=lambda one: (one.first.number, one.second.number))
    return _adjusted(comparisons)


def _nats(group: Group, split: str) -> dict[Hashable, float]:
    """Per token, of the runs that were scored, by what their weights go back to."""
    return {
        origin: run.scores[split].nll
        for origin, run in zip(group.origins, group.runs, strict=True)
        if split in run.scores
    }


def compare_over_text(section: Section, split: str) -> tuple[list[Comparison], list[LeftOut]]:
    """The bootstrap over articles, for each pair of groups with records of the same tokens.

    Records are compared if their evaluations have the same name and were read alike; of more than
    :data:`MOST_GROUPS` groups with such records, those of the best ones.

    What is compared is the mean over a group's seeds of each token's log-probability.

    Args:
        section: The groups.
        split: The split whose records are compared.

    Returns:
        The comparisons, and the records that cannot be used.
    """
    left_out: list[LeftOut] = []
    texts: dict[tuple[str, str, str], list[tuple[Group, list[Records]]]] = {}
    for group in section.groups:
        for name, protocol, records in _records(group, split, left_out):
            texts.setdefault((name, protocol, records[0].text), []).append((group, records))
    comparisons = []
    for name in sorted({name for name, _, _ in texts}):
        of_name = [
            comparison
            for (other, _, _), members in texts.items()
            if other == name
            for comparison in _compare(name, members)
        ]
        comparisons += _adjusted(of_name)
    return comparisons, left_out


def _records(
    group: Group, split: str, left_out: list[LeftOut]
) -> Iterator[tuple[str, str, list[Records]]]:
    """Name, protocol and records of each evaluation that all of a group's runs were read alike in.

    The records of the first run say which tokens count.
    """
    names = sorted({name for run in group.runs for name, of in run.evaluations if of == split})
    for name in names:
        found: list[Records] = []
        evaluations = group.evaluations(name, split)
        protocol, *others = protocols_of(evaluations)
        if others:  # the table of perplexities says so
            continue
        for evaluation in evaluations:
            if evaluation.records is None:
                continue
            score = evaluation.score
            nll = score.nll if evaluation.is_mean else None
            try:
                records = read_records(evaluation.records, score.num_tokens, nll)
                if found and records.text != found[0].text:
                    raise UserError("Its tokens are not those of the other seeds' records.")
                found.append(records)
            except UserError as error:
                left_out.append(LeftOut(evaluation.records, str(error)))
        if found:
            yield name, protocol, found


def _compare(name: str, members: Sequence[tuple[Group, list[Records]]]) -> Iterator[Comparison]:
    members = members[:MOST_GROUPS]
    any_records = members[0][1][0]
    num_tokens = any_records.num_tokens
    if len(members) < 2:
        return
    sums = np.stack([np.mean([one.sums for one in records], axis=0) for _, records in members])
    means = sums.sum(axis=1) / num_tokens.sum()
    is_enough = len(num_tokens) >= LEAST_UNITS
    resampled = bootstrap_means(sums, num_tokens) if is_enough else None
    for (i, (first, of_first)), (j, (second, of_second)) in combinations(enumerate(members), 2):
        difference = float(means[i] - means[j])
        if resampled is None:
            test = Difference(difference, -math.inf, math.inf, 1.0)
        else:
            test = bootstrap_test(difference, resampled[i] - resampled[j], len(num_tokens))
        num_seeds = len(of_first), len(of_second)
        unit = any_records.unit
        yield Comparison(
            first, second, test, unit, num_seeds, evaluation=name, num_units=len(num_tokens)
        )


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    tests = [comparison.test.p for comparison in comparisons if not comparison.has_too_few_units]
    adjusted = iter(holm(tests))
    return [
        comparison
        if comparison.has_too_few_units
        else replace(comparison, adjusted_p=next(adjusted))
        for comparison in comparisons
    ]
