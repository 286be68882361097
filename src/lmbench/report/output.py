"""The files of a comparison, each whole or not there."""

from pathlib import Path

from lmbench.errors import UserError
from lmbench.files import replacing
from lmbench.report.comparison import Report
from lmbench.report.page import left_out_table, render_page
from lmbench.report.plots import draw_plots
from lmbench.report.published import published_table
from lmbench.report.rows import csv_text, run_rows, table_rows
from lmbench.report.significance_tables import SIGNIFICANCE_COLUMNS, significance_rows
from lmbench.report.summary import summary_table
from lmbench.report.table import latex, markdown


def write_report(report: Report, folder: Path) -> list[Path]:
    """Writes page, tables and plots, when all of them have been made.

    Returns:
        The files.

    Raises:
        UserError: The folder cannot be made, or cannot be written.
    """
    chapters = report.chapters
    plots = {chapter.suffix: draw_plots(chapter.section, chapter.published) for chapter in chapters}
    published = [published_table(c.published) for c in chapters if c.published]
    tables = [*(summary_table(chapter.section) for chapter in chapters), *published]
    # A paper's page has no room for the costs too.
    narrow = [*(summary_table(c.section, with_costs=False) for c in chapters), *published]
    left_out = [left_out_table(report)] if report.left_out else []
    significance = [
        row
        for chapter in chapters
        for row in significance_rows([*chapter.over_text, *chapter.over_seeds], report.split)
    ]
    texts = {
        "index.html": render_page(report, plots),
        "table.md": "\n".join(markdown(table) for table in [*tables, *left_out]),
        "table.tex": "\n".join(latex(table) for table in narrow),
        "table.csv": csv_text([row for c in chapters for row in table_rows(c.section)]),
        "runs.csv": csv_text([row for c in chapters for row in run_rows(c.section)]),
        "significance.csv": csv_text(significance, SIGNIFICANCE_COLUMNS),
    }
    contents = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    for suffix, drawn in plots.items():
        for plot in drawn:
            contents[f"{plot.name}{suffix}.png"] = plot.png
            contents[f"{plot.name}{suffix}.svg"] = plot.svg
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be written: {error.strerror}. Make room, or name "
            "another folder with --output."
        ) from error
    return [folder / name for name in contents]
