"""Accuracies on minimal pairs: means over seeds, and which differences are significant."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lmbench.errors import UserError
from lmbench.report._evaluations import PairAccuracies
from lmbench.report._significance import (
    MOST_COMPARED,
    Comparison,
    adjusted,
    compare_runs,
    means_by_origin,
)
from lmbench.report.formats import Cell, Table, p_text
from lmbench.report.groups import Group, Section
from lmbench.report.records import read_correct
from lmbench.report.runs import Run, Skipped
from lmbench.report.statistics import Estimate, estimate, t_test

Place = tuple[str, str]
"""A level (overall, field, phenomenon or paradigm) and a name in it."""


@dataclass(frozen=True)
class PairResults:
    """Results of a section's groups on one set of pairs.

    Attributes:
        name: Name of the set.
        protocol: The pairs, and how those runs read them.
        accuracies: Group → accuracies of those of its runs that read these pairs.
        notes: Sentences to show beside them.
    """

    name: str
    protocol: str
    accuracies: Mapping[Group, Sequence[PairAccuracies]]
    notes: Sequence[str]

    def accuracy(self, group: Group, place: Place) -> Estimate | None:
        """Mean over a group's seeds, on one part of the pairs."""
        values = [x.accuracies[place] for x in self.accuracies[group] if place in x.accuracies]
        return estimate(values) if values else None

    def names(self, level: str) -> list[str]:
        """Names of a level that occur in any run, in alphabetical order."""
        found = (place for of in self.accuracies.values() for x in of for place in x.accuracies)
        return sorted({name for its_level, name in found if its_level == level})


def pair_results(section: Section) -> list[PairResults]:
    """The sets of pairs that the runs of a section have read."""
    sets = []
    for name in sorted(
        {name for g in section.groups for run in g.runs for name in run.minimal_pairs}
    ):
        found = {
            group: [run.minimal_pairs[name] for run in group.runs if name in run.minimal_pairs]
            for group in section.groups
        }
        protocols = Counter(x.protocol for of in found.values() for x in of)
        ((usual, _),) = protocols.most_common(1)
        alike = {group: [x for x in of if x.protocol == usual] for group, of in found.items()}
        alike = {group: of for group, of in alike.items() if of}
        notes = ["Accuracy in %. A pair with equal probabilities counts as incorrect."]
        notes += [
            f"{len(of)} of {len(group.runs)} {group.unit}s of {group.name}."
            for group, of in alike.items()
            if len(of) < len(group.runs)
        ]
        if sum(map(len, alike.values())) < sum(map(len, found.values())):
            notes.append(f"Runs that read other pairs under this name are left out ({usual}).")
        sets.append(PairResults(name, usual, alike, notes))
    return sets


def accuracy_table(pairs: PairResults) -> Table:
    """A row for each group."""
    places = [("", "all"), ("", "known words"), *(("field", x) for x in pairs.names("field"))]
    rows = [
        {
            "label": Cell(group.name, "name"),
            "num_seeds": Cell(len(of), f"{group.unit}s"),
            **{
                f"{level}_{name}": Cell(
                    pairs.accuracy(group, (level, name)), name, percent_text, is_wide=bool(level)
                )
                for level, name in places
            },
        }
        for group, of in pairs.accuracies.items()
    ]
    return Table(f"Minimal pairs of {pairs.name}", rows, pairs.notes)


def part_table(pairs: PairResults) -> Table:
    """A row for each group and part of the pairs, paradigms included."""
    levels = ("", "field", "phenomenon", "paradigm")
    rows = [
        {
            **_corpus_cells(group),
            "pairs": Cell(pairs.name),
            "label": Cell(group.name),
            "level": Cell(level or None),
            "part": Cell(name),
            "accuracy": Cell(pairs.accuracy(group, (level, name))),
        }
        for group in pairs.accuracies
        for level in levels
        for name in pairs.names(level)
    ]
    return Table("Minimal pairs", rows)


def _corpus_cells(group: Group) -> dict[str, Cell]:
    corpus = group.runs[0].corpus
    return {"corpus": Cell(corpus.name), "corpus_sha256": Cell(corpus.sha256)}


def accuracy_difference_table(comparisons: Sequence[Comparison], pairs: PairResults) -> Table:
    """A row for each test."""
    rows = [
        {
            **_corpus_cells(one.first),
            "pairs": Cell(pairs.name),
            "first_label": Cell(one.first.name, "first"),
            "second_label": Cell(one.second.name, "second"),
            "test": Cell(one.test_name),
            "first_num_seeds": Cell(one.num_seeds[0]),
            "second_num_seeds": Cell(one.num_seeds[1]),
            "drawn": Cell(one.unit, "drawn"),
            "num_drawn": Cell(one.num_units),
            "difference": Cell(one.test.difference, "percentage points", _points_text),
            "low": Cell(one.test.low, "95% CI, low", _points_text),
            "high": Cell(one.test.high, "95% CI, high", _points_text),
            "p": Cell(one.test.p, "p", p_text),
            "p_holm": Cell(one.adjusted_p, "p, all groups (Holm)", p_text),
            "verdict": Cell(one.significance_text, "verdict"),
        }
        for one in comparisons
    ]
    note = (
        "Differences are the second group's accuracy minus the first one's. Over pairs and over "
        "paradigms (of equal weight): paired t-tests of means over seeds. Over seeds: Welch's "
        "t-test, or a paired one where runs of both groups go back to the same weights."
    )
    return Table(f"Differences on minimal pairs of {pairs.name}", rows, [note])


def compare_accuracies(pairs: PairResults) -> tuple[list[Comparison], list[Skipped]]:
    """Tests every group against every other: over pairs, over paradigms, and over seeds.

    Returns:
        The tests, and the records that cannot be used.
    """
    skipped: list[Skipped] = []
    groups = list(pairs.accuracies)[:MOST_COMPARED]
    correct: dict[Group, tuple[np.ndarray, int]] = {}  # means over seeds, and how many
    paradigms = None
    for group in groups:
        run_values = []
        for one in pairs.accuracies[group]:
            if one.records is None:
                continue
            try:
                its, values = read_correct(one.records, one.num_pairs, one.accuracies["", "all"])
                paradigms = its if paradigms is None else paradigms
                if not np.array_equal(its, paradigms):
                    raise UserError("Its paradigms are not those of the other runs.")
                run_values.append(values)
            except UserError as error:
                skipped.append(Skipped(one.records, str(error)))
        if run_values:
            correct[group] = np.mean(run_values, axis=0), len(run_values)
    tests = [] if paradigms is None else [*_over_pairs(correct, paradigms)]
    tests += _over_seeds(pairs, groups)
    by_unit = [[one for one in tests if one.unit == unit] for unit in ("pair", "paradigm", "seed")]
    return [one for tests_of_unit in by_unit for one in adjusted(tests_of_unit)], skipped


def _over_pairs(
    correct: Mapping[Group, tuple[np.ndarray, int]], paradigms: np.ndarray
) -> Iterator[Comparison]:
    names, place = np.unique(paradigms, return_inverse=True)
    sizes = np.bincount(place, minlength=len(names))
    for first, second in combinations(correct, 2):
        by_pair = correct[first][0], correct[second][0]
        num_seeds = correct[first][1], correct[second][1]
        by_paradigm = [np.bincount(place, weights=values) / sizes for values in by_pair]
        for unit, sides in (("pair", by_pair), ("paradigm", by_paradigm)):
            if test := t_test(*map(np.ndarray.tolist, sides), is_paired=True):
                num_units = len(sides[0])
                yield Comparison(first, second, test, "paired t", num_seeds, unit, num_units)


def _over_seeds(pairs: PairResults, groups: Sequence[Group]) -> Iterator[Comparison]:
    def accuracy(run: Run) -> float | None:
        its = run.minimal_pairs.get(pairs.name)
        return its.accuracies["", "all"] if its and its.protocol == pairs.protocol else None

    for first, second in combinations(groups, 2):
        sides = means_by_origin(first, accuracy), means_by_origin(second, accuracy)
        if test := compare_runs(first, second, sides):
            yield test


def percent_text(value: Estimate) -> str:
    """Mean and interval of an accuracy, in percent."""
    mean = f"{100 * value.mean:.1f}"
    return mean if value.half_width is None else f"{mean} ± {100 * value.half_width:.1f}"


def _points_text(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")
