"""A table of texts, as Markdown, as LaTeX and for the terminal."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "±": r"$\pm$",
        "\N{MINUS SIGN}": "$-$",
        "—": "---",
        "…": r"\ldots{}",
        "†": r"\dag{}",
        "‡": r"\ddag{}",
        "§": r"\S{}",
        "¶": r"\P{}",
    }
)
_LATEX_BREAKS = re.compile(r"(?<=[.=/])(?=\w)")
_LATEX_WIDTH = 12  # letters of a heading's line, and of cells that need not break


@dataclass(frozen=True)
class Table:
    """Rows of texts under titles.

    Attributes:
        title: One line above it.
        columns: Their titles.
        rows: Rows of as many cells each.
        num_texts: Number of columns at the left that hold words; the others hold numbers.
        name_column: The one that names the row.
        notes: Sentences below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_texts: int
    name_column: int = 0
    notes: Sequence[str] = ()


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, under a heading."""
    rules = ["---" if index < table.num_texts else "---:" for index in range(len(table.columns))]
    lines = [[_markdown(cell) for cell in row] for row in (table.columns, *table.rows)]
    lines.insert(1, rules)
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"\n{_markdown(note)}\n" for note in table.notes)
    return f"## {_markdown(table.title)}\n\n{rows}\n{notes}"


def latex(table: Table) -> str:
    """The table for LaTeX with the package booktabs; words break where the column ends."""
    wide = [
        index == table.name_column or any(len(row[index]) > _LATEX_WIDTH for row in table.rows)
        for index in range(table.num_texts)
    ]
    width = 0.3 if sum(wide) == 1 else 0.4 / sum(wide)  # of the page, for each
    paragraph = rf">{{\raggedright\arraybackslash}}p{{{width:.2g}\linewidth}}"
    columns = "".join(paragraph if is_wide else "l" for is_wide in wide)
    columns += "r" * (len(table.columns) - table.num_texts)
    headings = [
        _latex(column) if index < table.num_texts else _latex_heading(column)
        for index, column in enumerate(table.columns)
    ]
    cells = [
        [_latex(cell, in_text=index < table.num_texts) for index, cell in enumerate(row)]
        for row in table.rows
    ]
    head, *rows = [" & ".join(row) + r" \\" for row in (headings, *cells)]
    caption = " ".join([f"{table.title}.", *table.notes])
    return "\n".join(
        [
            r"% \usepackage{array, booktabs}",
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{_latex(caption)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def terminal(table: Table) -> "RichTable":
    """The table for rich."""
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=Text(table.title), title_justify="left", caption_justify="left")
    shown.caption = Text("\n".join(table.notes))
    for index, column in enumerate(table.columns):
        if index < table.num_texts:
            shown.add_column(Text(column), overflow="fold")
        else:
            shown.add_column(Text(column), justify="right")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~#&$])", r"\\\1", text)


def _latex_heading(text: str) -> str:
    lines = [_latex(line) for line in textwrap.wrap(text, _LATEX_WIDTH)]
    joined = r" \\ ".join(lines)
    return rf"\shortstack[r]{{{joined}}}" if len(lines) > 1 else joined


def _latex(text: str, *, in_text: bool = False) -> str:
    parts = _LATEX_BREAKS.split(text) if in_text else [text]
    return r"\allowbreak{}".join(part.translate(_LATEX) for part in parts)
