"""The whole comparison of runs: read, grouped, summed up and tested."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmbench.report.conclusions import conclusions
from lmbench.report.folders import LeftOut
from lmbench.report.groups import Group, Section, group_runs
from lmbench.report.published import CORPUS, Published
from lmbench.report.runs import read_runs
from lmbench.report.significance import (
    OWN_PREDICTIONS,
    Comparison,
    compare_over_seeds,
    compare_over_text,
)


@dataclass(frozen=True)
class Chapter:
    """All about the runs on one corpus.

    Attributes:
        section: The groups of these runs.
        over_text: Comparisons for this text.
        over_seeds: Comparisons for other seeds.
        conclusions: Sentences.
        without_records: Groups whose own predictions cannot be compared over the text.
        published: Results of others on this corpus.
        suffix: What the names of its files end in, if there are other corpora.
    """

    section: Section
    over_text: Sequence[Comparison]
    over_seeds: Sequence[Comparison]
    conclusions: Sequence[str]
    without_records: Sequence[Group]
    published: Sequence[Published]
    suffix: str


@dataclass(frozen=True)
class Report:
    """A comparison.

    Attributes:
        chapters: One for each corpus.
        left_out: What was found and does not count, with the reasons.
        split: The split that the tests are about.
    """

    chapters: Sequence[Chapter]
    left_out: Sequence[LeftOut]
    split: str


def compare(run_dirs: Iterable[Path], *, split: str, published: Sequence[Published]) -> Report:
    """Compares runs.

    Args:
        run_dirs: Run directories, or folders that hold some.
        split: "test" or "valid", for the tests of significance.
        published: Results to set beside those on the corpus that they belong to.

    Raises:
        UserError: There is no finished run.
    """
    runs, left_out = read_runs(run_dirs)
    sections, repeated = group_runs(runs)
    left_out += repeated
    chapters = []
    for section in sections:
        over_text, unusable = compare_over_text(section, split)
        left_out += unusable
        over_seeds = compare_over_seeds(section, split)
        chapters.append(
            Chapter(
                section,
                over_text,
                over_seeds,
                conclusions(section, over_text, over_seeds, split),
                [group for group in section.groups if not _has_records(group, split)],
                published if section.corpus.name == CORPUS else (),
                f"_{_plain(section)}" if len(sections) > 1 else "",
            )
        )
    return Report(chapters, left_out, split)


def _has_records(group: Group, split: str) -> bool:
    return any(
        evaluation.records is not None
        for run in group.runs
        for (name, of), evaluation in run.evaluations.items()
        if name in OWN_PREDICTIONS and of == split
    )


def _plain(section: Section) -> str:
    """Name and start of the hash, as a part of a file's name."""
    corpus = section.corpus
    text = f"{corpus.name[:30]}_{corpus.sha256[:8]}"
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text)
