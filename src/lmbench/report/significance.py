"""Which differences between groups hold: for this text, and for other seeds."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from lmbench.errors import UserError
from lmbench.report.folders import LeftOut
from lmbench.report.groups import Group, Section, protocols_of
from lmbench.report.records import Records, read_records
from lmbench.report.statistics import Difference, bootstrap_means, bootstrap_test, holm, welch_test
from lmbench.report.table import Table

LEVEL = 0.05

_MOST_GROUPS_IN_PAIRS = 8
_FEW_UNITS = 20


@dataclass(frozen=True)
class Comparison:
    """One test of the difference between two groups, in nats per token.

    Attributes:
        first: the group with the lower valid perplexity.
        second: the other; the difference is this one's nats per token minus the first one's.
        test: the difference, its interval and p-value.
        adjusted_p: for all pairs together (Holm).
        evaluation: whose records were compared; None for the test over seeds.
        num_units: articles or blocks that were drawn from; None for the test over seeds.
        unit: "article", "block" or "seed".
        num_seeds: of the first group and of the second.
    """

    first: Group
    second: Group
    test: Difference
    unit: str
    num_seeds: tuple[int, int]
    evaluation: str | None = None
    num_units: int | None = None
    adjusted_p: float = 1.0

    @property
    def holds(self) -> bool:
        """Whether it differs from zero, all pairs considered."""
        return self.adjusted_p < LEVEL


def compare_over_seeds(section: Section, split: str) -> list[Comparison]:
    """Welch's test for each pair of groups that have two seeds each, on nats per token."""
    scored = [
        (group, [run.scores[split].nll for run in group.runs if split in run.scores])
        for group in section.groups
    ]
    comparisons = []
    for (first, better), (second, worse) in combinations(scored, 2):
        test = welch_test(better, worse)
        if test is not None and first.protocol == second.protocol:
            num_seeds = len(better), len(worse)
            comparisons.append(Comparison(first, second, test, "seed", num_seeds))
    return _adjusted(comparisons)


def compare_over_text(section: Section, split: str) -> tuple[list[Comparison], list[LeftOut]]:
    """The bootstrap over articles, for each pair of groups with records of the same tokens.

    Records are compared if their evaluations have the same name and were read alike.

    What is compared is the mean over a group's seeds of each token's log-probability.

    Args:
        section: the groups.
        split: whose records.

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
            try:
                records = read_records(evaluation.records, evaluation.score.num_tokens)
                if found and records.text != found[0].text:
                    raise UserError("Its tokens are not those of the other seeds' records.")
                found.append(records)
            except UserError as error:
                left_out.append(LeftOut(evaluation.records, str(error)))
        if found:
            yield name, protocol, found


def _compare(name: str, members: Sequence[tuple[Group, list[Records]]]) -> Iterator[Comparison]:
    any_records = members[0][1][0]
    num_tokens = any_records.num_tokens
    if len(members) < 2 or len(num_tokens) < 2:
        return
    sums = np.stack([np.mean([one.sums for one in records], axis=0) for _, records in members])
    means = sums.sum(axis=1) / num_tokens.sum()
    resampled = bootstrap_means(sums, num_tokens)
    for (i, (first, of_first)), (j, (second, of_second)) in combinations(enumerate(members), 2):
        test = bootstrap_test(float(means[i] - means[j]), resampled[i] - resampled[j])
        num_seeds = len(of_first), len(of_second)
        unit = any_records.unit
        yield Comparison(first, second, test, unit, num_seeds, name, len(num_tokens))


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    adjusted = holm([comparison.test.p for comparison in comparisons])
    return [
        replace(comparison, adjusted_p=p)
        for comparison, p in zip(comparisons, adjusted, strict=True)
    ]


def significance_table(section: Section, comparisons: Sequence[Comparison], title: str) -> Table:
    """The comparisons of a section, those with its best group alone where there are many groups."""
    shown, notes = list(comparisons), []
    if len(section.groups) > _MOST_GROUPS_IN_PAIRS:
        shown = [comparison for comparison in comparisons if comparison.first.number == 1]
        notes.append(
            f"Shown are the {len(shown):,} pairs with group 1; significance.csv has all "
            f"{len(comparisons):,}, for which p is adjusted."
        )
    fewest = min((one.num_units for one in shown if one.num_units is not None), default=_FEW_UNITS)
    if fewest < _FEW_UNITS:
        notes.append(f"With fewer than {_FEW_UNITS} to draw from, these intervals are too narrow.")
    rows = [
        [
            f"{comparison.first.number} and {comparison.second.number}",
            comparison.evaluation or "seeds",
            "{} and {}".format(*comparison.num_seeds),
            *(
                []
                if comparison.num_units is None
                else [f"{comparison.num_units:,} {comparison.unit}s"]
            ),
            _difference_text(comparison.test),
            _ratio_text(comparison.test),
            p_text(comparison.test.p),
            p_text(comparison.adjusted_p),
            "yes" if comparison.holds else "no",
        ]
        for comparison in shown
    ]
    with_units = any(comparison.num_units is not None for comparison in shown)
    columns = [
        "groups",
        "evaluation",
        "seeds",
        *(["drawn from"] if with_units else []),
        "difference in nats per token",
        "ratio of perplexities",
        "p",
        "p, all pairs (Holm)",
        "holds",
    ]
    return Table(title, columns, rows, num_texts=2, notes=notes)


def significance_rows(comparisons: Sequence[Comparison], split: str) -> list[dict[str, object]]:
    """The comparisons with all digits."""
    return [
        {
            "corpus": comparison.first.runs[0].corpus.name,
            "corpus_sha256": comparison.first.runs[0].corpus.sha256,
            "split": split,
            "test": "Welch" if comparison.evaluation is None else "bootstrap",
            "evaluation": comparison.evaluation,
            "first_group": comparison.first.number,
            "first_label": comparison.first.label,
            "second_group": comparison.second.number,
            "second_label": comparison.second.label,
            "first_num_seeds": comparison.num_seeds[0],
            "second_num_seeds": comparison.num_seeds[1],
            "drawn": comparison.unit,
            "num_drawn": comparison.num_units,
            "difference_nats_per_token": comparison.test.difference,
            "low": comparison.test.low,
            "high": comparison.test.high,
            "perplexity_ratio": _ratio(comparison.test.difference),
            "p": comparison.test.p,
            "p_holm": comparison.adjusted_p,
        }
        for comparison in comparisons
    ]


def p_text(p: float) -> str:
    """A p-value as papers give it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _difference_text(test: Difference) -> str:
    return f"{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]".replace(
        "-", "\N{MINUS SIGN}"
    )


def _ratio_text(test: Difference) -> str:
    low, middle, high = (_ratio(nats) for nats in (test.low, test.difference, test.high))
    return f"{middle:.4f} [{low:.4f}, {high:.4f}]"


def _ratio(nats: float) -> float:
    return math.exp(nats) if nats < math.log(sys.float_info.max) else math.inf
