"""One page that needs nothing else: no network, no script, no other file."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmbench.printing import printable
from lmbench.report.comparison import Chapter, Report
from lmbench.report.conclusions import TWO_KINDS
from lmbench.report.groups import Section
from lmbench.report.plots import Plot
from lmbench.report.published import published_table
from lmbench.report.significance_tables import significance_table
from lmbench.report.summary import perplexity_text, summary_table
from lmbench.report.table import Table

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def render_page(report: Report, plots: Mapping[str, Sequence[Plot]]) -> str:
    """The comparison as HTML.

    Args:
        report: The comparison.
        plots: The pictures of each chapter, by its suffix.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text("utf-8"))
    return template.render(
        title=f"Comparison on {', '.join(c.section.corpus.name for c in report.chapters)}",
        chapters=[
            _chapter(chapter, plots[chapter.suffix], report.split) for chapter in report.chapters
        ],
        split=report.split,
        two_kinds=TWO_KINDS,
        left_out=report.left_out,
        left_out_table=left_out_table(report),
        version=version("lmbench"),
    )


def left_out_table(report: Report) -> Table:
    """What was found and does not count."""
    rows = [[printable(str(item.path)), printable(item.reason)] for item in report.left_out]
    return Table("Left out", ["folder or file", "reason"], rows, num_texts=2)


def _chapter(chapter: Chapter, plots: Sequence[Plot], split: str) -> dict[str, Any]:
    section = chapter.section
    runs = [run for group in section.groups for run in group.runs]
    return {
        "name": section.corpus.name,
        "sentence": (
            f"Runs: {len(runs):,}. Groups: {len(section.groups):,}. SHA-256 of the corpus: "
            f"{section.corpus.sha256[:12]}…"
        ),
        "conclusions": chapter.conclusions,
        "table": summary_table(section),
        "published": published_table(chapter.published) if chapter.published else None,
        "plots": [
            {"data": b64encode(plot.svg).decode(), "alt": plot.alt, "caption": plot.caption}
            for plot in plots
        ],
        "significance": [
            significance_table(
                section, chapter.over_text, f"Over the {split} text, for these trained models"
            ),
            significance_table(
                section, chapter.over_seeds, f"Over seeds, on {split}, by each run's own score"
            ),
        ],
        "without_records": ", ".join(str(group.number) for group in chapter.without_records),
        "num_groups": len(section.groups),
        "num_runs": len(runs),
        "runs": _runs_table(section),
        "differences": _differences_table(section),
    }


def _runs_table(section: Section) -> Table:
    rows = [
        [
            str(group.number),
            printable(str(run.run_dir)),
            str(run.seed),
            *(
                perplexity_text(run.scores[split].ppl) if split in run.scores else "—"
                for split in ("valid", "test")
            ),
            "—" if run.best_epoch is None else str(run.best_epoch),
            "—" if run.seconds is None else f"{run.seconds / 60:,.1f}",
            run.device,
        ]
        for group in section.groups
        for run in group.runs
    ]
    columns = ["group", "run", "seed", "valid", "test", "best epoch, from 0", "minutes", "device"]
    return Table("Runs", columns, rows, num_texts=2, name_column=1)


def _differences_table(section: Section) -> Table:
    columns = ["key", *(f"group {group.number}" for group in section.groups)]
    rows = [[key, *values] for key, values in section.differences.items()]
    return Table("Config differences", columns, rows, num_texts=1)
