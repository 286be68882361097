"""The validations of a run, as its CSV files have them."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmbench.files import read_text
from lmbench.report._evaluations import LARGEST_PERPLEXITY, damage_named


@dataclass(frozen=True)
class Curve:
    """The validations of a run, in order.

    Attributes:
        epochs: Passes over the training stream at each of them.
        minutes: Wall-clock time of the fit at each; None if the run did not record it.
        perplexities: Those of valid; nan where the run had diverged.
        switch: Index of the validation after which it switched to averaged SGD, if it did.
    """

    epochs: tuple[float, ...]
    minutes: tuple[float, ...] | None
    perplexities: tuple[float, ...]
    switch: int | None


def read_curve(path: Path, results: Mapping[str, Any]) -> Curve:
    """The validations in a run's ``metrics.csv``, with their times from ``timing.csv``.

    Args:
        path: The run's ``metrics.csv``.
        results: Its ``results.json``.

    Raises:
        UserError: A file cannot be read, or is damaged.
    """
    timing = path.with_name("timing.csv")
    rows = [row for row in _rows(path) if row.get("val/ppl")]
    timed = _rows(timing) if timing.exists() else []
    with damage_named(timing):
        seconds = {row["step"]: row["train/seconds"] for row in timed if row.get("train/seconds")}
    with damage_named(path):
        num_epochs, epochs = float(results["train"]["epochs"]), [int(row["epoch"]) for row in rows]
        if not rows or not math.isfinite(num_epochs):
            raise ValueError("it holds no validation")
        perplexities = [float(row["val/ppl"]) for row in rows]
        switch = (results.get("nt_asgd") or {}).get("triggered_epoch")
        return Curve(
            epochs=tuple(min(epoch + 1, num_epochs) for epoch in epochs),
            minutes=tuple(float(seconds[row["step"]]) / 60 for row in rows)
            if all(row["step"] in seconds for row in rows)
            else None,
            perplexities=tuple(x if 0 < x < LARGEST_PERPLEXITY else math.nan for x in perplexities),
            switch=epochs.index(switch) if switch in epochs else None,
        )


def _rows(path: Path) -> list[dict[str, str]]:
    text = read_text(path)
    with damage_named(path):
        rows = list(csv.DictReader(text.splitlines(), strict=True))
        is_cut = bool(text) and not text.endswith("\n")
        if is_cut or any(None in row or None in row.values() for row in rows):
            raise ValueError("a row does not have as many fields as there are columns, or is cut")
        return rows
