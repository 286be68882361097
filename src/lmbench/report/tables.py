"""The tables of a comparison: rows of cells, from which all formats are made.

A column that is added here, to a group's row or a run's, appears in the terminal, on the page, and
in the Markdown, LaTeX and CSV files.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from lmbench.printing import printable
from lmbench.report.groups import Group, Section
from lmbench.report.runs import SPLITS, Run, Skipped
from lmbench.report.significance import OWN_PREDICTIONS, Comparison
from lmbench.report.statistics import Estimate

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
    """The rows of tables with all digits, as one CSV file; an estimate has three columns.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    given = [row for table in tables for row in table.rows]
    means = {key for row in given for key in row if isinstance(row[key].value, Estimate)}

    def values(row: Row) -> Iterator[tuple[str, Any]]:
        for key, (value, *_) in row.items():
            if key in means:
                names = (f"{key}_{of}" for of in Estimate._fields)
                yield from zip(names, value or (None, None, 0), strict=True)
            else:
                yield key, value

    def as_text(value: Any) -> Any:
        is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t"))
        return f"'{value}" if is_formula else value

    rows = [{as_text(k): as_text(x) for k, x in values(row)} for row in given]
    file = io.StringIO()
    writer = csv.DictWriter(file, dict.fromkeys(chain(*rows)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


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


def latex(table: Table) -> str:
    """The table for LaTeX with the package booktabs."""
    import pandas as pd

    titles, rows, numbers = table.shown(narrow=True)
    title = re.sub(r"[^\w ,.]|_", " ", table.title, flags=re.ASCII)  # pandas escapes cells only
    frame = pd.DataFrame(rows, columns=titles).map(lambda text: text.replace("±", "+-"))
    columns = "".join("r" if is_number else "l" for is_number in numbers)
    text = frame.to_latex(index=False, escape=True, column_format=columns, caption=title)
    return "% \\usepackage{booktabs}\n" + text.replace("+-", r"$\pm$")


def print_table(table: Table, console: "Console") -> None:
    """Prints the table in the terminal, with its notes; one that is too wide, in parts."""
    from rich.table import Table as RichTable
    from rich.text import Text

    titles, rows, numbers = table.shown(narrow=True)
    columns = list(zip(titles, *rows, strict=True))
    widths = [
        min(max(map(len, column)), 40 if index else 24) for index, column in enumerate(columns)
    ]
    parts: list[list[int]] = [[]]
    for index in range(len(titles)):
        is_full = sum(widths[i] + 3 for i in (*parts[-1], index)) >= console.width
        if is_full and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(index)
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


def group_table(section: Section) -> Table:
    """Each group's perplexities and costs."""
    rows = [_group_row(group, section) for group in section.groups]
    return Table(f"Perplexity on {section.corpus.name}", rows, [*_notes(section)])


def _group_row(group: Group, section: Section) -> Row:
    def over_runs(how: Callable[[list[float]], float], *keys: str) -> float | None:
        known = [x for run in group.runs if (x := run.number(*keys)) is not None]
        return how(known) if known else None

    def evaluated(name: str, split: str) -> Cell:
        is_wide = split == "valid" or name in OWN_PREDICTIONS
        return Cell(group.perplexity(split, name), f"{name}, {split}", estimate_text, is_wide)

    best, floor = group.best_run, section.corpus.perplexity_floor
    speed = over_runs(fmean, "train", "tokens_per_second")
    memory = over_runs(max, "train", "peak_memory_bytes")
    return {
        "corpus": Cell(section.corpus.name),
        "corpus_sha256": Cell(section.corpus.sha256),
        "group": Cell(group.number),
        "label": Cell(group.name, "name"),
        "num_seeds": Cell(len(group.runs), f"{group.unit}s"),
        **{f"{s}_ppl": Cell(group.perplexity(s), s, estimate_text) for s in SPLITS},
        **{
            f"{name}_{split}_ppl": evaluated(name, split)
            for name in section.evaluation_names
            for split in SPLITS
        },
        "best_run_dir": Cell(str(best.run_dir)),
        **{f"best_{s}_ppl": Cell(best.scores[s].ppl if s in best.scores else None) for s in SPLITS},
        "num_parameters": Cell(best.number("num_parameters"), "parameters", "{:,}".format, True),
        "epochs": Cell(over_runs(fmean, "train", "epochs"), "epochs", _epochs_text, True),
        "seconds": Cell(over_runs(fmean, "train", "seconds"), "minutes", _minutes_text, True),
        "tokens_per_second": Cell(speed, "tokens/s", "{:,.0f}".format, True),
        "peak_memory_bytes": Cell(memory, "GiB", lambda x: f"{x / 2**30:.2f}", True),
        "protocol": Cell(group.protocol),
        **{f"floor_{split}_ppl": Cell(floor.get(split)) for split in SPLITS},
    }


def run_table(section: Section) -> Table:
    """A row for each run."""
    rows = [_run_row(group, run, section) for group in section.groups for run in group.runs]
    return Table("Runs", rows)


def _run_row(group: Group, run: Run, section: Section) -> Row:
    environment = run.results.get("environment")
    device = environment.get("device") if isinstance(environment, Mapping) else None
    row = {
        "corpus": Cell(section.corpus.name),
        "corpus_sha256": Cell(section.corpus.sha256),
        "group": Cell(group.number),
        "label": Cell(group.name, "name"),
        "seed": Cell(run.seed, "seed"),
        "run_dir": Cell(str(run.run_dir), "run"),
    }
    for split in SPLITS:
        score = run.scores.get(split)
        row[f"{split}_nll"] = Cell(score and score.nll)
        row[f"{split}_ppl"] = Cell(score and score.ppl, split, perplexity_text)
    row |= {
        "best_epoch": Cell(run.number("best_epoch"), "best epoch, from 0"),
        "epochs": Cell(run.number("train", "epochs")),
        "num_parameters": Cell(run.number("num_parameters")),
        "seconds": Cell(run.number("train", "seconds"), "minutes", _minutes_text),
        "tokens_per_second": Cell(run.number("train", "tokens_per_second")),
        "peak_memory_bytes": Cell(run.number("train", "peak_memory_bytes")),
        "device": Cell(None if device is None else printable(str(device)), "device"),
        "protocol": Cell(run.protocol),
    }
    for name in section.evaluation_names:
        for split in SPLITS:
            found = run.evaluations.get((name, split))
            row[f"{name}_{split}_ppl"] = Cell(found and found.score.ppl)
            row[f"{name}_{split}_protocol"] = Cell(found and found.protocol)
    return row


def pair_table(title: str, comparisons: Sequence[Comparison], split: str) -> Table:
    """A row for each tested pair of groups."""
    return Table(title, [_pair_row(comparison, split) for comparison in comparisons])


def _pair_row(one: Comparison, split: str) -> Row:
    corpus, test, num_seeds = one.first.runs[0].corpus, one.test, one.num_seeds
    return {
        "corpus": Cell(corpus.name),
        "corpus_sha256": Cell(corpus.sha256),
        "split": Cell(split),
        "test": Cell(one.test_name),
        "first_label": Cell(one.first.name, "first"),
        "second_label": Cell(one.second.name, "second"),
        "first_group": Cell(one.first.number),
        "second_group": Cell(one.second.number),
        "evaluation": Cell(one.evaluation, "evaluation"),
        "first_num_seeds": Cell(num_seeds[0], f"{one.first.unit}s of the first"),
        "second_num_seeds": Cell(num_seeds[1], f"{one.second.unit}s of the second"),
        "drawn": Cell(one.unit),
        "num_drawn": Cell(one.num_units, "articles or blocks"),
        "difference_nats_per_token": Cell(test.difference, "nats", _nats_text),
        "low": Cell(test.low, "from", _nats_text),
        "high": Cell(test.high, "to", _nats_text),
        "perplexity_ratio": Cell(one.ratio, "ratio", "{:.4f}".format),
        "p": Cell(test.p, "p", p_text),
        "p_holm": Cell(one.adjusted_p, "p, all pairs (Holm)", p_text),
        "verdict": Cell("holds" if one.holds else "does not hold", "verdict"),
    }


def skipped_table(skipped: Sequence[Skipped]) -> Table:
    """What was found but does not count."""
    rows = [
        {"path": Cell(str(item.path), "folder or file"), "reason": Cell(item.reason, "reason")}
        for item in skipped
    ]
    return Table("Left out", rows)


def difference_table(section: Section) -> Table:
    """The config keys in which the groups differ."""
    names = [group.name for group in section.groups]
    rows = [
        {"key": Cell(key, "key"), **{n: Cell(x, n) for n, x in zip(names, values, strict=True)}}
        for key, values in section.differences.items()
    ]
    return Table("Config differences", rows)


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


def _epochs_text(epochs: float) -> str:
    return f"{epochs:,.2f}".removesuffix(".00")


def _minutes_text(seconds: float) -> str:
    return f"{seconds / 60:,.1f}"


def _nats_text(nats: float) -> str:
    return f"{nats:+.4f}".replace("-", "\N{MINUS SIGN}")


def _notes(section: Section) -> Iterator[str]:
    groups = section.groups
    if any(len(group.runs) > 1 for group in groups):
        yield f"Mean over {groups[0].unit}s ± 95% interval (Student's t)."
    if floor := section.corpus.perplexity_floor:
        values = " / ".join(f"{ppl:.2f}" for ppl in floor.values())
        yield f"Perplexity floor, {' / '.join(floor)}: {values}."
    (usual, _), *others = Counter(group.protocol for group in groups).most_common()
    if others:
        names = [f"{g.name} ({g.protocol})" for g in groups if g.protocol != usual]
        yield f"Not read like the others ({usual}), so not comparable: {'; '.join(names)}."
    for split, group in product(SPLITS, groups):
        if 0 < (number := sum(split in run.scores for run in group.runs)) < len(group.runs):
            yield f"{split}: {number} of {len(group.runs)} {group.unit}s of {group.name}."
    for name in section.evaluation_names:
        for split in SPLITS:
            found = {group: group.evaluations(name, split) for group in groups}
            ways = sorted({one.protocol for of in found.values() for one in of})
            if len(ways) > 1:
                yield f"{name}, {split}: not all were read alike ({'; '.join(ways[:6])})."
            if split == "valid" and any(one.is_tuned for of in found.values() for one in of):
                yield f"{name} was tuned on valid: only its test figures are fair."
            for group, of in found.items():
                if 0 < len(of) < len(group.runs):
                    which = f"{len(of)} of {len(group.runs)} {group.unit}s of {group.name}"
                    yield f"{name}, {split}: {which}."
