"""The whole comparison of runs: read, grouped, summed up and tested."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmbench.report.ensemble import build_ensemble
from lmbench.report.groups import Section, group_runs
from lmbench.report.literature import CORPUS, Published, published_table
from lmbench.report.runs import Skipped, read_runs
from lmbench.report.significance import Comparison, compare_over_seeds, compare_over_text
from lmbench.report.tables import Table, group_table
from lmbench.report.verdict import Sentence, verdict


@dataclass(frozen=True)
class Chapter:
    """All about the runs on one corpus.

    Attributes:
        section: The groups of these runs.
        over_text: Comparisons for this text.
        over_seeds: Comparisons for other seeds.
        verdict: What it says.
        tables: The groups; members of ensembles; what others have published.
        published: Results of others on this corpus.
        suffix: What the names of its files end in, if there are other corpora.
    """

    section: Section
    over_text: Sequence[Comparison]
    over_seeds: Sequence[Comparison]
    verdict: Sequence[Sentence]
    tables: Sequence[Table]
    published: Sequence[Published]
    suffix: str


@dataclass(frozen=True)
class Report:
    """A comparison.

    Attributes:
        chapters: One for each corpus.
        skipped: What was found and does not count, with the reasons.
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
        paths: Run directories, or folders that hold some, each after a name for its runs, or None.
        split: "test" or "valid", for the tests of significance.
        group_by: See :func:`~lmbench.report.groups.group_runs`.
        published: Results to set beside those on the corpus that they belong to.
        ensembles: The members of each; an ensemble is called what the first of them is.
        output: Where the records of ensembles go; None for nowhere.

    Raises:
        UserError: There is no finished run; or members cannot be one ensemble.
    """
    runs, skipped = read_runs(paths)
    built = [build_ensemble([x for _, x in of], of[0][0], output) for of in ensembles]
    runs += [run for run, _ in built]
    sections, repeated = group_runs(runs, group_by)
    skipped += repeated
    chapters = []
    for section in sections:
        over_text, unusable = compare_over_text(section, split)
        skipped += unusable
        over_seeds = compare_over_seeds(section, split)
        corpus = f"{section.corpus.name[:30]}_{section.corpus.sha256[:8]}"
        plain = "".join(x if x.isascii() and x.isalnum() else "_" for x in corpus)
        of_corpus = published if section.corpus.name == CORPUS else ()
        tables = [group_table(section)]
        tables += [members for run, members in built if run.corpus == section.corpus]
        tables += [published_table(of_corpus)] if of_corpus else []
        chapters.append(
            Chapter(
                section,
                over_text,
                over_seeds,
                verdict(section, over_text, over_seeds, split),
                tables,
                of_corpus,
                f"_{plain}" if len(sections) > 1 else "",
            )
        )
    return Report(chapters, skipped, split)
