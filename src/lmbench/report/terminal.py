"""A comparison in the terminal."""

from rich.console import Console
from rich.text import Text

from lmbench.printing import printable
from lmbench.report.comparison import Report
from lmbench.report.published import published_table
from lmbench.report.summary import summary_table
from lmbench.report.table import terminal


def show(report: Report, console: Console) -> None:
    """Prints the table of each corpus, what it means, and what was left out."""
    for chapter in report.chapters:
        console.print(terminal(summary_table(chapter.section, with_costs=False)))
        console.print(Text(" ".join(chapter.conclusions)))
        if chapter.published:
            console.print(terminal(published_table(chapter.published)))
        console.print()
    for item in report.left_out:
        console.print(Text(printable(f"Left out: {item.path}: {item.reason}")))
