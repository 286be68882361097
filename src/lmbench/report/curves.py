"""Learning curves, from a run's ``metrics.csv`` and ``timing.csv``."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from lmbench.errors import UserError
from lmbench.files import read_small

LARGEST_PERPLEXITY = 1e100
"""What is above has diverged, and its square need not be finite."""


@dataclass(frozen=True)
class Curve:
    """The validations of a run, in their order.

    Attributes:
        epochs: Passes over the training stream at each of them.
        tokens: Trained tokens at each: its steps times the run's mean number of tokens a step.
        minutes: Wall-clock time of the fit at the end of each, validation and saving included;
            None if the run has not recorded it.
        perplexities: Those of the valid split; nan where it was not finite, or hardly.
        switch: Index of the validation that the switch to averaged SGD followed; None if none.
        goes_on: Whether it goes on beyond the training that the run's results speak of.
    """

    epochs: tuple[float, ...]
    tokens: tuple[float, ...]
    minutes: tuple[float, ...] | None
    perplexities: tuple[float, ...]
    switch: int | None
    goes_on: bool


def read_curve(
    run_dir: Path,
    *,
    num_epochs: float,
    num_steps: int,
    num_tokens: int | None,
    switch_epoch: int | None,
) -> Curve:
    """Reads the curve of a finished run.

    Args:
        run_dir: The run's directory.
        num_epochs: Epochs that it trained; the last one may have been cut short.
        num_steps: Steps that it trained.
        num_tokens: Tokens that it trained; None if it did not count them.
        switch_epoch: The epoch after which it switched to averaged SGD; None if it did not.

    Raises:
        UserError: A file is missing or damaged, or holds no validation.
    """
    path = run_dir / "metrics.csv"
    validations = _read(path, ("step", "epoch", "val/ppl"))
    steps = [int(step) for step, _, _ in validations]
    epochs = [int(epoch) for _, epoch, _ in validations]
    if not validations or num_steps < 1:
        raise UserError(f"{path} holds no validation.")
    at_ends = len(set(epochs)) == len(epochs)  # not several an epoch, as by val_check_interval
    tokens_per_step = math.nan if num_tokens is None else num_tokens / num_steps
    return Curve(
        epochs=tuple(
            min(epoch + 1, num_epochs) if at_ends else (step + 1) * num_epochs / num_steps
            for step, epoch in zip(steps, epochs, strict=True)
        ),
        tokens=tuple((step + 1) * tokens_per_step for step in steps),
        minutes=_minutes(run_dir / "timing.csv", steps),
        perplexities=tuple(
            ppl if 0 < ppl < LARGEST_PERPLEXITY else math.nan for _, _, ppl in validations
        ),
        switch=len(epochs) - 1 - epochs[::-1].index(switch_epoch)
        if switch_epoch in epochs
        else None,
        goes_on=max(epochs) >= num_epochs or max(steps) >= num_steps,
    )


def _minutes(path: Path, steps: list[int]) -> tuple[float, ...] | None:
    if not path.exists():
        return None
    seconds = {int(step): value for step, value in _read(path, ("step", "train/seconds"))}
    if not all(step in seconds for step in steps):
        return None
    return tuple(seconds[step] / 60 for step in steps)


def _read(path: Path, columns: tuple[str, ...]) -> list[tuple[float, ...]]:
    """The rows that have a value in the last of the columns, if the file has that column."""
    text = read_small(path)
    try:
        reader = csv.reader(text.splitlines(), strict=True)
        header = next(reader, [])
        if not text.endswith("\n"):
            raise ValueError("its last line is cut short")
        if columns[-1] not in header:
            return []
        places = [header.index(column) for column in columns]
        rows = []
        for row in reader:
            if len(row) != len(header):
                raise ValueError(f"line {reader.line_num} has not {len(header)} fields")
            if row[places[-1]]:
                rows.append(tuple(float(row[place]) for place in places))
        if not all(all(map(math.isfinite, row[:-1])) for row in rows):
            raise ValueError("a step or an epoch is no number")
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}. Copy it anew, or run again.") from error
    return rows
