"""Metrics as two CSV files: what a rerun must repeat to the last bit, and what it cannot."""

import contextlib
import csv
import io
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lmbench.errors import UserError
from lmbench.files import flush_to_disk, replace_text

_UNITS_OF_TIMING = ("seconds", "_per_second", "_bytes")


class MetricsCSV(Logger):
    """Writes ``metrics.csv`` (deterministic columns) and ``timing.csv`` (speed and memory).

    One row per call of ``log_metrics``, on disk when the call returns. Columns come in the order
    in which they are first logged; a new one rewrites the file with a wider header.

    Args:
        save_dir: The folder of the files.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self._metrics = _CSVFile(Path(save_dir, "metrics.csv"))
        self._timing = _CSVFile(Path(save_dir, "timing.csv"))

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
        """Appends the metrics, each to its file."""
        epoch = {"epoch": int(metrics["epoch"])} if "epoch" in metrics else {}
        for file, is_timing in ((self._metrics, False), (self._timing, True)):
            values = {
                name: value
                for name, value in metrics.items()
                if name != "epoch" and name.endswith(_UNITS_OF_TIMING) == is_timing
            }
            if values:
                file.append({"step": step, **epoch, **values})

    def state_dict(self) -> dict[str, Any]:
        """How far the files have been written."""
        return {"metrics": self._metrics.state_dict(), "timing": self._timing.state_dict()}

    @rank_zero_only
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Reads the rows that there were then; with the next one the files are cut to them.

        Not earlier: a resume that is refused changes nothing.

        Raises:
            UserError: The files have lost rows since.
        """
        self._metrics.load_state_dict(state_dict["metrics"])
        self._timing.load_state_dict(state_dict["timing"])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: hyperparameters stand in the run's config.yaml."""


class _CSVFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
        self._rows: list[Mapping[str, object]] = []
        self._must_be_cut = False

    def append(self, row: Mapping[str, object]) -> None:
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        self._columns += new
        with self._named_errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if new or self._must_be_cut:
                self._write_all()
                self._must_be_cut = False
            else:
                with self._path.open("a", encoding="utf-8") as file:
                    self._writer(file).writerow(row)

    def state_dict(self) -> dict[str, Any]:
        if self._rows:
            with self._named_errors():
                flush_to_disk(self._path)  # a checkpoint on the disk must find its rows there
        return {"columns": list(self._columns), "num_rows": len(self._rows)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._columns, num_rows = list(state_dict["columns"]), state_dict["num_rows"]
        self._rows = []
        self._must_be_cut = True
        if not num_rows:
            return
        try:
            with self._path.open(encoding="utf-8", newline="") as file:
                rows = itertools.islice(csv.DictReader(file), num_rows)
                self._rows = [{name: row.get(name) for name in self._columns} for row in rows]
        except (OSError, UnicodeError, csv.Error) as error:
            raise UserError(f"{self._path} cannot be read: {error}.") from error
        if len(self._rows) < num_rows:
            raise UserError(
                f"{self._path} has {len(self._rows)} rows, but had {num_rows} when the checkpoint "
                "was saved. Put the rows back that are missing."
            )

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written: {error.strerror}. Make room, or see that the "
                "folder can be written. The checkpoints are whole."
            ) from error

    def _write_all(self) -> None:
        text = io.StringIO()
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(self._rows)
        replace_text(self._path, text.getvalue())

    def _writer(self, file: TextIO) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self._columns, lineterminator="\n")
