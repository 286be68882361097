"""The whole comparison of runs: read, grouped, summed up and tested."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmbench.errors import UserError
from lmbench.files import file_stem
from lmbench.report._ensemble import build_ensemble
from lmbench.report._significance import Comparison, compare_over_seeds, compare_over_text
from lmbench.report._verdict import Sentence, verdict
from lmbench.report.formats import Table
from lmbench.report.groups import Section, group_runs
from lmbench.report.literature import CORPUS, Published, published_table
from lmbench.report.minimal_pairs import (
    PairResults,
    accuracy_difference_table,
    accuracy_table,
    compare_accuracies,
    pair_results,
)
from lmbench.report.runs import Run, Skipped, read_runs
from lmbench.report.tables import group_table
from lmbench.terminal.printing import printable


@dataclass(frozen=True)
class Chapter:
    """Everything about the runs on one corpus.

    Attributes:
        section: The groups of these runs.
        comparisons: All tests, over the text and over seeds.
        verdict: What these say, in sentences.
        tables: The groups; members of ensembles; what others have published; minimal pairs.
        published: Results of others on this corpus.
        pairs: Sets of minimal pairs that were read, and the tests of their accuracies.
        suffix: Ending of its plots' names if there are other corpora, else empty.
    """

    section: Section
    comparisons: Sequence[Comparison]
    verdict: Sequence[Sentence]
    tables: Sequence[Table]
    published: Sequence[Published]
    pairs: Sequence[tuple[PairResults, Sequence[Comparison]]]
    suffix: str


@dataclass(frozen=True)
class Report:
    """A comparison.

    Attributes:
        chapters: One for each corpus.
        skipped: What was found but does not count, with the reasons.
        split: The split that the tests are about.
    """

    chapters: Sequence[Chapter]
    skipped: Sequence[Skipped]
    split: str


def compare(
    paths: Iterable[tuple[str | None, Path]],
    *,
    split: str = "test",
    group_by: Sequence[str] = (),
    published: Sequence[Published] = (),
    ensembles: Iterable[Sequence[tuple[str | None, Path]]] = (),
    output: Path | None = None,
) -> Report:
    """Compares runs.

    Args:
        paths: Run directories or folders of them, each preceded by a name for its runs or None.
        split: "test" or "valid", for the tests of significance.
        group_by: See :func:`lmbench.report.groups.group_runs`.
        published: Results to set beside those on the corpus that they belong to.
        ensembles: The members of each; an ensemble takes its name from the member that has one.
        output: Where the records of ensembles go; None for nowhere.

    Raises:
        UserError: There is no finished run; members cannot form an ensemble; an ensemble's
            name is not unique; or no run is on the corpus of the published results.
    """
    runs, skipped = read_runs(paths)
    built: dict[str, tuple[Run, Table]] = {}
    for number, members in enumerate(ensembles, start=1):
        named = [printable(name) for name, _ in members if name] or [f"ensemble {number}"]
        taken = [*built, *(file_stem(run.name) for run in runs)]
        if len(named) > 1 or file_stem(named[0]) in taken:
            raise UserError(
                f"Each ensemble needs one name, different from all others: {named[-1]}."
            )
        built[file_stem(named[0])] = build_ensemble([x for _, x in members], named[0], output)
    runs += [run for run, _ in built.values()]
    sections, repeated = group_runs(runs, group_by)
    skipped += repeated
    if published and all(section.corpus.name != CORPUS for section in sections):
        raise UserError(f"--published: these results are on {CORPUS}, and no run is.")
    chapters = []
    for section in sections:
        over_text, unusable = compare_over_text(section, split)
        skipped += unusable
        comparisons = [*over_text, *compare_over_seeds(section, split)]
        corpus = f"{section.corpus.name[:30]}_{section.corpus.sha256[:8]}"
        published_here = published if section.corpus.name == CORPUS else ()
        tables = [group_table(section)]
        tables += [members for run, members in built.values() if run.corpus == section.corpus]
        tables += [published_table(published_here)] if published_here else []
        pairs = []
        for results in pair_results(section):
            tests, unusable = compare_accuracies(results)
            skipped += unusable
            tables.append(accuracy_table(results))
            tables += [accuracy_difference_table(tests, results)] if tests else []
            pairs.append((results, tests))
        said = verdict(section, comparisons, split)
        if len(sections) > 1:
            said.append(
                Sentence("Runs on other texts or vocabularies cannot be compared with these.")
            )
        suffix = f"_{file_stem(corpus)}" if len(sections) > 1 else ""
        chapters.append(Chapter(section, comparisons, said, tables, published_here, pairs, suffix))
    return Report(chapters, skipped, split)
