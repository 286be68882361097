"""Metrics as two CSV files: what a rerun must repeat to the last bit, and what it cannot."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

_UNITS_OF_TIMING = ("seconds", "_per_second", "_bytes")


class MetricsCSV(Logger):
    """Writes ``metrics.csv`` (deterministic columns) and ``timing.csv`` (speed and memory).

    One row per call of ``log_metrics``, on disk when the call returns. Columns come in the order
    in which they are first logged; a new one rewrites the file with a wider header.

    Args:
        save_dir: the folder of the files.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self._metrics = _CSVFile(Path(save_dir, "metrics.csv"))
        self._timing = _CSVFile(Path(save_dir, "timing.csv"))

    @property
    def name(self) -> str:
        """Of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one version: the run's."""
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

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They stand in the run's config.yaml."""


class _CSVFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
        self._rows: list[Mapping[str, object]] = []

    def append(self, row: Mapping[str, object]) -> None:
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        self._columns += new
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(self._rows if new else [row])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("w" if new else "a", encoding="utf-8") as file:
            file.write(text.getvalue())
