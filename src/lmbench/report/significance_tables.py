"""The tests of significance as tables, for people and for programs."""

import math
import sys
from collections.abc import Iterator, Sequence

from lmbench.report.groups import Section
from lmbench.report.significance import LEAST_UNITS, LEVEL, MOST_GROUPS, Comparison
from lmbench.report.statistics import NUM_RESAMPLES, smallest_bootstrap_p
from lmbench.report.table import Table

SIGNIFICANCE_COLUMNS = (
    "corpus",
    "corpus_sha256",
    "split",
    "test",
    "evaluation",
    "first_group",
    "first_label",
    "second_group",
    "second_label",
    "first_num_seeds",
    "second_num_seeds",
    "drawn",
    "num_drawn",
    "difference_nats_per_token",
    "low",
    "high",
    "perplexity_ratio",
    "p",
    "p_holm",
    "verdict",
)

_MOST_GROUPS_IN_PAIRS = 8


def significance_table(section: Section, comparisons: Sequence[Comparison], title: str) -> Table:
    """The comparisons of a section; of many groups, those with the best of their evaluation."""
    shown, notes = list(comparisons), []
    if len(section.groups) > _MOST_GROUPS_IN_PAIRS:
        # Not all are tested against group 1: it may have a single seed, or other evaluations.
        worse = {(one.evaluation, one.second.number) for one in comparisons}
        shown = [one for one in comparisons if (one.evaluation, one.first.number) not in worse]
        best = sorted({one.first.number for one in shown})
        notes.append(
            f"Shown are the {len(shown):,} pairs with group {' or '.join(map(str, best))}, the "
            f"best of those that were compared; significance.csv has all {len(comparisons):,}, and "
            "p is adjusted for all of an evaluation's."
        )
    if len(section.groups) > MOST_GROUPS:
        notes.append(
            f"Of more than {MOST_GROUPS} groups that can be compared, the best {MOST_GROUPS} are."
        )
    if any(comparison.has_too_few_units for comparison in shown):
        notes.append(
            f"Too few: with fewer than {LEAST_UNITS} to draw from, even the bootstrap's expanded "
            "intervals can be too narrow and its p too small, so that there is no verdict."
        )
    notes += _out_of_reach(comparisons)
    rows = [
        [
            f"{comparison.first.number} and {comparison.second.number}",
            comparison.evaluation or ("seeds, paired" if comparison.is_paired else "seeds"),
            "{} and {}".format(*comparison.num_seeds),
            *(
                []
                if comparison.num_units is None
                else [f"{comparison.num_units:,} {comparison.unit}s"]
            ),
            *_test_texts(comparison),
        ]
        for comparison in shown
    ]
    with_units = any(comparison.num_units is not None for comparison in shown)
    columns = [
        "groups",
        "evaluation",
        "seeds",
        *(["drawn from"] if with_units else []),
        "difference in nats per token [95% interval]",
        "ratio of perplexities [95% interval]",
        "p",
        "p, all pairs (Holm)",
        "holds",
    ]
    return Table(title, columns, rows, num_texts=2, notes=notes)


def significance_rows(comparisons: Sequence[Comparison], split: str) -> list[dict[str, object]]:
    """The comparisons with all digits, under :data:`SIGNIFICANCE_COLUMNS`."""
    return [
        {
            "corpus": comparison.first.runs[0].corpus.name,
            "corpus_sha256": comparison.first.runs[0].corpus.sha256,
            "split": split,
            "test": _test_name(comparison),
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
            "low": _if_tested(comparison, comparison.test.low),
            "high": _if_tested(comparison, comparison.test.high),
            "perplexity_ratio": _ratio(comparison.test.difference),
            "p": _if_tested(comparison, comparison.test.p),
            "p_holm": _if_tested(comparison, comparison.adjusted_p),
            "verdict": _verdict(comparison),
        }
        for comparison in comparisons
    ]


def p_text(p: float) -> str:
    """A p-value as papers give it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _out_of_reach(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Evaluations of so many pairs that resampling cannot show any difference to hold."""
    num_units: dict[str | None, list[int]] = {}
    for one in comparisons:
        if one.num_units is not None and not one.has_too_few_units:
            num_units.setdefault(one.evaluation, []).append(one.num_units)
    for evaluation, of_pairs in num_units.items():
        if smallest_bootstrap_p(max(of_pairs)) * len(of_pairs) >= LEVEL:
            yield (
                f"{evaluation}: no difference can hold here, however large, as even the smallest p "
                f"of {NUM_RESAMPLES:,} resamples is not below {LEVEL:g} when it is adjusted for "
                f"{len(of_pairs):,} pairs. Compare fewer groups."
            )


def _test_texts(comparison: Comparison) -> list[str]:
    """Difference, ratio, p, adjusted p and verdict."""
    test = comparison.test
    difference, ratio = f"{test.difference:+.4f}", f"{_ratio(test.difference):.4f}"
    if comparison.has_too_few_units:
        texts = [difference, ratio, "—", "—", "too few"]
    else:
        texts = [
            f"{difference} [{test.low:+.4f}, {test.high:+.4f}]",
            f"{ratio} [{_ratio(test.low):.4f}, {_ratio(test.high):.4f}]",
            p_text(test.p),
            p_text(comparison.adjusted_p),
            "yes" if comparison.holds else "no",
        ]
    return [text.replace("-", "\N{MINUS SIGN}") for text in texts]


def _test_name(comparison: Comparison) -> str:
    if comparison.evaluation is not None:
        return "bootstrap"
    return "paired t" if comparison.is_paired else "Welch"


def _if_tested(comparison: Comparison, value: float) -> float | None:
    return None if comparison.has_too_few_units else value


def _verdict(comparison: Comparison) -> str:
    if comparison.has_too_few_units:
        return f"none: too few {comparison.unit}s"
    return "holds" if comparison.holds else "does not hold"


def _ratio(nats: float) -> float:
    return math.exp(nats) if nats < math.log(sys.float_info.max) else math.inf
