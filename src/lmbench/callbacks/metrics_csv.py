"""Metrics as two CSV files: what a rerun must repeat to the last bit, and what it cannot."""

import csv
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lmbench.errors import UserError
from lmbench.files import flush_to_disk, read_text, replace_text

_UNITS_OF_TIMING = ("seconds", "_per_second", "_bytes")


class MetricsCSV(Logger):
    """Writes ``metrics.csv`` (deterministic columns) and ``timing.csv`` (speed and memory).

    One row per call of ``log_metrics``, in the file when the call returns. Columns come in the
    order in which they are first logged; a new one rewrites the file with a wider header.

    Args:
        save_dir: The folder of the files.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        names = ("metrics", "timing")
        self._files = {name: _CSVFile(Path(save_dir, f"{name}.csv")) for name in names}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: there is one version, the run's."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends the metrics, each to its file.

        Raises:
            OSError: The disk is full, or the folder cannot be written.
        """
        epoch = {"epoch": int(metrics["epoch"])} if "epoch" in metrics else {}
        values: dict[str, dict[str, float]] = {"metrics": {}, "timing": {}}
        for name, value in metrics.items():
            if name != "epoch":
                values["timing" if name.endswith(_UNITS_OF_TIMING) else "metrics"][name] = value
        for name, file in self._files.items():
            if values[name]:
                file.append({"step": step, **epoch, **values[name]})

    def state_dict(self) -> dict[str, Any]:
        """How far the files have been written."""
        return {name: file.state_dict() for name, file in self._files.items()}

    @rank_zero_only
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next row cut the files to the rows that they had then.

        Not earlier: a resume that is refused changes nothing.

        Raises:
            UserError: The files have lost or changed rows since.
        """
        for name, file in self._files.items():
            file.load_state_dict(state_dict[name])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: hyperparameters are in the run's config.yaml."""


class _CSVFile:
    """Rows on disk; in memory are the columns, the number of rows, and the last row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
        self._num_rows = 0
        self._last_row: dict[str, str] = {}
        self._must_be_cut = False

    def append(self, row: Mapping[str, object]) -> None:
        new = [name for name in row if name not in self._columns]
        if new or self._must_be_cut:
            rows = [*self._read(), row]
            self._columns += new
            text = io.StringIO()
            writer = self._writer(text)
            writer.writeheader()
            writer.writerows(rows)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(self._path, text.getvalue())
            self._must_be_cut = False
        else:
            with self._path.open("a", encoding="utf-8") as file:
                self._writer(file).writerow(row)
        self._num_rows += 1
        self._last_row = {name: str(value) for name, value in row.items()}

    def state_dict(self) -> dict[str, Any]:
        if self._num_rows:
            flush_to_disk(self._path)  # a checkpoint on the disk must find its rows there
        return {
            "columns": list(self._columns),
            "num_rows": self._num_rows,
            "last_row": dict(self._last_row),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._columns = list(state_dict["columns"])
        self._num_rows, self._last_row = state_dict["num_rows"], dict(state_dict["last_row"])
        self._must_be_cut = True
        rows = self._read()
        last = {name: value for name, value in rows[-1].items() if value} if rows else {}
        if len(rows) < self._num_rows or last != self._last_row:
            raise UserError(
                f"{self._path} no longer has the {self._num_rows} rows that it had when the "
                "checkpoint was saved, or the last of them differs. Put back the file that belongs "
                "to the checkpoint."
            )

    def _read(self) -> list[dict[str, Any]]:
        """The rows that count in the file as it is now."""
        if not self._num_rows:
            return []
        rows = csv.DictReader(io.StringIO(read_text(self._path), newline=""))
        try:
            return [
                {name: row.get(name) for name in self._columns}
                for row in itertools.islice(rows, self._num_rows)
            ]
        except csv.Error as error:
            raise UserError(f"{self._path} cannot be read: {error}.") from error

    def _writer(self, file: TextIO) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self._columns, lineterminator="\n")
