"""Writes the table of ``lmbench-score`` block by block."""

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lmbench.files import replacing
from lmbench.terminal.printing import printable, printing

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def writing(output: Path | None) -> Iterator[Callable[["pd.DataFrame"], None]]:
    """Yields what writes a table's blocks, one after the other, to a file or stdout."""
    if output is None:
        with printing(encoding="utf-8"):
            yield _tsv_writer(sys.stdout, printable)
    elif output.suffix != ".parquet":
        with (
            replacing(output.resolve()) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            yield _tsv_writer(file)
    else:
        with replacing(output.resolve()) as temporary, ExitStack() as stack:
            yield _parquet_writer(temporary, stack)


def _tsv_writer(
    file: TextIO, shown: Callable[[str], str] | None = None
) -> Callable[["pd.DataFrame"], None]:
    is_first = True

    def write(table: "pd.DataFrame") -> None:
        nonlocal is_first
        table = table.astype({"unknown": "int64"})
        for name in {"word", "sentence", "file"} & set(table) if shown else ():
            table[name] = table[name].map(shown)
        # Words may be quotation marks, and readers of the table split it at tabs.
        form = {"sep": "\t", "index": False, "quoting": csv.QUOTE_NONE, "float_format": "%.9g"}
        table.to_csv(file, header=is_first, **form)
        is_first = False

    return write


def _parquet_writer(path: Path, stack: ExitStack) -> Callable[["pd.DataFrame"], None]:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    writer: Any = None

    def write(table: "pd.DataFrame") -> None:
        nonlocal writer
        rows = pyarrow.Table.from_pandas(table, preserve_index=False)
        if writer is None:
            writer = stack.enter_context(ParquetWriter(path, rows.schema))
        writer.write_table(rows.cast(writer.schema))

    return write
