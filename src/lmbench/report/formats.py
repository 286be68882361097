"""A table of cells, from which all formats are made: terminal, Markdown, LaTeX and CSV."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from lmbench.files import file_stem
from lmbench.report.statistics import Estimate
from lmbench.terminal.printing import printable

if TYPE_CHECKING:
    from rich.console import Console


class Cell(NamedTuple):
    """One value of a row.

    Attributes:
        value: A number, a text, an :class:`lmbench.report.statistics.Estimate`, or None.
        title: Heading of its column; None if it is for programs only.
        text: Turns the value into what people read.
        is_wide: Whether it is left out in the terminal and in papers, which are narrow.
    """

    value: Any
    title: str | None = None
    text: Callable[[Any], str] = str
    is_wide: bool = False


Row: TypeAlias = Mapping[str, Cell]
"""Column name in CSV files → cell; all rows of a table have the same columns."""


@dataclass(frozen=True)
class Table:
    """A title, rows, and sentences below; a column that is empty in all rows is not shown."""

    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def shown(self, *, narrow: bool = False) -> tuple[list[str], list[list[str]], list[bool]]:
        """Titles, texts, and whether a column holds numbers.

        Args:
            narrow: Whether to leave out the wide columns.
        """
        columns = [[row[key] for row in self.rows] for key in (self.rows[0] if self.rows else ())]
        columns = [
            column
            for column in columns
            if column[0].title is not None and not (narrow and column[0].is_wide)
            if any(cell.value is not None for cell in column)
        ]
        texts = [
            ["" if cell.value is None else printable(cell.text(cell.value)) for cell in column]
            for column in columns
        ]
        numbers = [any(not isinstance(cell.value, str | None) for cell in c) for c in columns]
        titles = [printable(column[0].title or "") for column in columns]
        return titles, [list(row) for row in zip(*texts, strict=True)], numbers


def csv_text(tables: Iterable[Table]) -> str:
    """The rows of tables with all digits, as one CSV file; an estimate has three columns."""
    given = [row for table in tables for row in table.rows]
    means = {key for row in given for key in row if isinstance(row[key].value, Estimate)}

    def values(row: Row) -> Iterator[tuple[str, Any]]:
        for key, (value, *_) in row.items():
            if key in means:
                names = (f"{key}_{of}" for of in Estimate._fields)
                yield from zip(names, value or (None, None, 0), strict=True)
            else:
                yield key, value

    rows = [dict(values(row)) for row in given]
    file = io.StringIO()
    writer = csv.DictWriter(file, dict.fromkeys(chain(*rows)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def json_rows(tables: Iterable[Table]) -> list[dict[str, Any]]:
    """The rows of tables for JSON; an estimate is an object, what is not finite is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Estimate):
            return {name: plain(x) for name, x in value._asdict().items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{key: plain(row[key].value) for key in row} for x in tables for row in x.rows]


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, under a heading."""

    def escaped(text: str) -> str:
        return re.sub(r"([\\`*_\[\]<>|~#&$])", r"\\\1", text)

    titles, rows, numbers = table.shown()
    rules = ["---:" if is_number else "---" for is_number in numbers]
    lines = [list(map(escaped, titles)), rules, *(list(map(escaped, row)) for row in rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"\n{escaped(note)}\n" for note in table.notes)
    return f"## {escaped(table.title)}\n\n{text}\n{notes}"


_LATEX = str.maketrans(
    {**{char: f"\\{char}" for char in "&%$#_{}"}, "~": r"\textasciitilde{}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}"}
    # LaTeX's usual fonts have other characters in the places of these, or none.
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"±": r"$\pm$", "\N{MINUS SIGN}": "$-$"}
)


def latex(table: Table) -> str:
    """The table for LaTeX with the package booktabs."""
    import pandas as pd

    titles, rows, numbers = table.shown(narrow=True)
    frame = pd.DataFrame(rows, columns=titles).map(lambda text: text.translate(_LATEX))
    frame.columns = [title.translate(_LATEX) for title in titles]
    columns = "".join("r" if is_number else "l" for is_number in numbers)
    caption = table.title.translate(_LATEX)
    text = frame.to_latex(
        index=False,
        escape=False,
        column_format=columns,
        caption=caption,
        label=f"tab:{file_stem(table.title).lower()}",
    )
    return f"% \\usepackage{{booktabs}}\n{text}"


def print_table(table: Table, console: "Console") -> None:
    """Prints the table in the terminal, with its notes; one that is too wide, in parts.

    Each part begins with the columns that say what a row is about.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    titles, rows, numbers = table.shown(narrow=True)
    columns = list(zip(titles, *rows, strict=True))
    widths = [
        min(max(map(len, column)), 40 if index else 24) for index, column in enumerate(columns)
    ]
    labels = [0]
    for index in range(1, len(titles)):
        width = sum(widths[i] + 3 for i in (*labels, index))
        if numbers[index] or width > console.width // 2:
            break
        labels.append(index)
    parts = [labels]
    for index in range(len(labels), len(titles)):
        is_full = sum(widths[i] + 3 for i in (*parts[-1], index)) >= console.width
        if is_full and parts[-1] != labels:
            parts.append(labels)
        parts[-1] = [*parts[-1], index]
    for part in parts:
        shown = RichTable(title=Text(printable(table.title)), title_justify="left")
        for index in part:
            how: Any = {"justify": "right"} if numbers[index] else {"overflow": "fold"}
            shown.add_column(Text(titles[index]), min_width=widths[index] * numbers[index], **how)
        for row in rows:
            shown.add_row(*(Text(row[index]) for index in part))
        console.print(shown)
    for note in table.notes:
        console.print(Text(printable(note), "italic"))


def perplexity_text(perplexity: float) -> str:
    """A perplexity to two decimals; for a run that has learnt nothing, its magnitude."""
    return f"{perplexity:,.2f}" if perplexity < 1e6 else f"{perplexity:.1e}"


def estimate_text(value: Estimate) -> str:
    """Mean and interval of a perplexity, or a single seed's value."""
    mean = perplexity_text(value.mean)
    return mean if value.half_width is None else f"{mean} ± {perplexity_text(value.half_width)}"


def p_text(p: float) -> str:
    """A p-value as papers give it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
