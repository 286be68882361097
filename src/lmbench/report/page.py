"""The files of a comparison: a self-contained page, tables and plots."""

import json
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import unescape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmbench.errors import UserError
from lmbench.files import replacing
from lmbench.report._significance import MOST_COMPARED, OWN_PREDICTIONS, Comparison
from lmbench.report.comparison import Chapter, Report
from lmbench.report.formats import csv_text, json_rows, latex, markdown, p_text
from lmbench.report.groups import Group
from lmbench.report.minimal_pairs import accuracy_difference_table, part_table
from lmbench.report.plots import Plot, draw_plots
from lmbench.report.tables import (
    config_difference_table,
    group_table,
    pair_table,
    run_table,
    skipped_table,
)

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_NOT_ALWAYS = re.compile(
    r"(test_perplexity|curves_(epochs|minutes)|minimal_pairs_).*\.(png|svg)"
    r"|(significance|minimal_pairs|minimal_pairs_significance)\.csv"
)
"""Files that not every comparison has: nothing else is deleted, whatever an earlier page names."""

_FILES = re.compile(r'<meta name="lmbench-files" content="([^"]*)">')
"""Where a page names the files that were written with it."""


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes page, tables and plots, once all of them have been made.

    Returns:
        The files.

    Raises:
        UserError: The folder cannot be made or written to, or has such files of another origin.
    """
    chapters = report.chapters
    plots = {
        chapter.suffix: draw_plots(
            chapter.section, chapter.published, [results for results, _ in chapter.pairs]
        )
        for chapter in chapters
    }
    tables = [table for chapter in chapters for table in chapter.tables]
    skipped = [skipped_table(report.skipped)] if report.skipped else []
    groups = [group_table(chapter.section) for chapter in chapters]
    runs = [run_table(chapter.section) for chapter in chapters]
    pairs = [pair_table("", chapter.comparisons, report.split) for chapter in chapters]
    everything = {
        "lmbench_version": version("lmbench"),
        "split": report.split,
        "groups": json_rows(groups),
        "runs": json_rows(runs),
        "significance": json_rows(pairs),
    }
    texts = {
        "table.md": "\n".join(markdown(table) for table in [*tables, *skipped]),
        "table.tex": "\n".join(latex(table) for table in tables),
        "table.csv": csv_text(groups),
        "runs.csv": csv_text(runs),
        "comparison.json": json.dumps(everything, indent=2, allow_nan=False) + "\n",
    }
    if any(chapter.comparisons for chapter in chapters):
        texts["significance.csv"] = csv_text(pairs)
    if sets := [results for chapter in chapters for results in chapter.pairs]:
        texts["minimal_pairs.csv"] = csv_text(part_table(pairs) for pairs, _ in sets)
        if any(tests for _, tests in sets):
            tests = csv_text(accuracy_difference_table(tests, pairs) for pairs, tests in sets)
            texts["minimal_pairs_significance.csv"] = tests
    images = {
        f"{plot.name}{suffix}.{ending}": image
        for suffix, drawn in plots.items()
        for plot in drawn
        for ending, image in (("png", plot.png), ("svg", plot.svg))
    }
    texts = {"index.html": render_page(report, plots, [*texts, *images])} | texts
    contents = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    contents |= images
    page, earlier = folder / "index.html", []
    if page.is_file() and b"Made by lmbench-compare" in (content := page.read_bytes()):
        listed = _FILES.search(content.decode("utf-8", "replace"))
        names = unescape(listed[1]).split("/") if listed else []
        earlier = [x for x in names if _NOT_ALWAYS.fullmatch(x) and x not in contents]
    else:
        for name in contents:
            if (folder / name).exists():
                raise UserError(
                    f"{folder / name} is not lmbench's. Name another folder with --output."
                )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
        for name in earlier:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be written: {error.strerror}. Make room, or name "
            "another folder with --output."
        ) from error
    return [folder / name for name in contents]


def render_page(
    report: Report, plots: Mapping[str, Sequence[Plot]], files: Iterable[str] = ()
) -> str:
    """The comparison as HTML.

    Args:
        report: The comparison.
        plots: For each chapter's suffix, its plots.
        files: Names of the other files that are written with the page.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text("utf-8"))
    return template.render(
        title=f"Comparison on {', '.join(c.section.corpus.name for c in report.chapters)}",
        chapters=[_chapter(c, plots[c.suffix], report.split) for c in report.chapters],
        split=report.split,
        skipped=skipped_table(report.skipped),
        version=version("lmbench"),
        files="/".join(files),
    )


def _chapter(chapter: Chapter, plots: Sequence[Plot], split: str) -> dict[str, Any]:
    section = chapter.section
    over_seeds = [pair for pair in chapter.comparisons if pair.unit == "seed"]
    over_text = [pair for pair in chapter.comparisons if pair.unit != "seed"]
    unit = section.groups[0].unit
    pairs = (("other text of this kind", over_text), (f"other {unit}s", over_seeds))
    return {
        "corpus": section.corpus,
        "verdict": chapter.verdict,
        "tables": chapter.tables,
        "plots": [(b64encode(plot.svg).decode(), plot.alt, plot.caption) for plot in plots],
        "matrix": difference_matrix(chapter),
        "pairs": [
            pair_table(f"Would they differ on {what}?", of, split) for what, of in pairs if of
        ],
        "runs": run_table(section),
        "differences": config_difference_table(section),
    }


def difference_matrix(chapter: Chapter) -> list[tuple[str, list[dict[str, str]]]]:
    """By how much the perplexity of a row's group is lower or higher than that of a column's.

    Returns:
        For each group its name and its cells, each with ``text``, ``kind`` (better, worse, open or
        untested) and ``title``, what the tests say. Empty if nothing was tested.
    """
    tests: dict[tuple[Group, Group], list[Comparison]] = {}
    for pair in sorted(chapter.comparisons, key=lambda pair: pair.unit != "seed"):
        # The models themselves: over seeds the runs' own scores, over the text their records.
        own = (None,) if pair.unit == "seed" else OWN_PREDICTIONS
        if pair.evaluation in own:
            tests.setdefault((pair.first, pair.second), []).append(pair)
    named = {group for pair in tests for group in pair}
    groups = [group for group in chapter.section.groups if group in named][:MOST_COMPARED]

    def cell(row: Group, column: Group) -> dict[str, str]:
        pairs = tests.get((row, column)) or tests.get((column, row))
        if not pairs:
            return {"text": "", "kind": "untested", "title": ""}
        ratio = 1 / pairs[0].ratio if pairs[0].first == row else pairs[0].ratio
        signs = {pair.test.difference > 0 for pair in pairs}
        is_significant = all(pair.is_significant for pair in pairs) and len(signs) == 1
        kind = ("worse" if ratio > 1 else "better") if is_significant else "open"
        title = "; ".join(f"{pair.test_name}: p {p_text(pair.adjusted_p)}" for pair in pairs)
        text = f"{100 * (ratio - 1):+.1f}%".replace("-", "\N{MINUS SIGN}")
        return {"text": text, "kind": kind, "title": title}

    return [(row.name, [cell(row, column) for column in groups]) for row in groups]
