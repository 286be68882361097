"""Token streams cut into columns that are read side by side.

Shape letters: T time steps of a window, B columns, N tokens of a split.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lmbench.errors import UserError
from lmbench.perplexity import IGNORE_INDEX

PROTOCOLS = ("standard", "awd_lstm_lm")
"""Ways of reading valid and test: see :class:`EvaluationSettings`."""

AWD_LSTM_LM_COLUMNS = {"valid": 10, "test": 1}
"""Number of columns with which salesforce/awd-lstm-lm evaluates (main.py)."""


@dataclass(frozen=True, eq=False)
class Columns:
    """A stream read side by side in B columns of equal length; the ids are not copied.

    Row r of a column that starts at s reads token s + r and has token s + r + 1 as its target.

    Args:
        ids: (N,) the stream, which may lie on disk.
        starts: (B,) where each column starts.
        num_rows: Rows of each column.
        first_scored: (B,) the first row of each column that is scored.
        first_rows: (B,) the row at which reading starts in each column; after the last row it
            continues at row 0.
        extra_divisor: What a mean over the targets adds to their number in the divisor.
    """

    ids: np.ndarray
    starts: np.ndarray
    num_rows: int
    first_scored: np.ndarray
    first_rows: np.ndarray
    extra_divisor: int = 0

    @property
    def num_columns(self) -> int:
        """The number of columns, B."""
        return len(self.starts)

    def read(
        self, start: int = 0, end: int | None = None
    ) -> tuple[Int[Tensor, "T B"], Int[Tensor, "T B"]]:
        """Tokens and targets of the rows from ``start`` to ``end`` (exclusive).

        Rows beyond the stream are filled with its first token. Their targets, and those before
        ``first_scored``, are ``IGNORE_INDEX``.
        """
        places = self.places(start, self.num_rows if end is None else end)
        inside = places < len(self.ids) - 1
        scored = inside & (places - self.starts >= self.first_scored)
        places = np.where(inside, places, 0)
        targets = np.where(scored, self.ids[places + 1], IGNORE_INDEX)
        tokens = torch.from_numpy(self.ids[places].astype(np.int64))
        return tokens, torch.from_numpy(targets.astype(np.int64))

    def windows(self, size: int) -> list[tuple[int, int]]:
        """First and last row (exclusive) of windows of ``size`` rows; the last may be shorter."""
        return [(row, min(row + size, self.num_rows)) for row in range(0, self.num_rows, size)]

    def places(self, start: int, end: int) -> np.ndarray:
        """Positions in the stream of these rows' tokens, (T, B); targets are one later."""
        rows = np.arange(start, end)[:, None]
        return self.starts + (rows + self.first_rows) % self.num_rows

    def num_scored(self, start: int, end: int) -> int:
        """Number of targets that are scored in these rows, if reading starts at row 0."""
        ends = np.minimum(end, len(self.ids) - 1 - self.starts)
        return int(np.maximum(ends - np.maximum(start, self.first_scored), 0).sum())

    def share(self, part: int, num_parts: int) -> "Columns":
        """Part number ``part`` of ``num_parts``, which must divide the number of columns."""
        size = self.num_columns // num_parts
        mine = slice(part * size, (part + 1) * size)
        by_column = ("starts", "first_scored", "first_rows")
        return replace(self, **{name: getattr(self, name)[mine] for name in by_column})

    def partially_shuffled(self, seed: int, epoch: int) -> "Columns":
        """The same columns, each read from a first row drawn from ``(seed, epoch)``.

        Different words are then side by side in every epoch, while sentences keep their order,
        except for one break in each column.

        Source: Press 2019 (arXiv 1903.04167).
        """
        generator = np.random.default_rng((seed, epoch, 1))  # 1: unlike that of the windows
        return replace(self, first_rows=generator.integers(self.num_rows, size=self.num_columns))


def columns_for_training(
    ids: np.ndarray, batch_size: int, key: str = "batching.batch_size"
) -> Columns:
    """Folds a stream into columns of equal length and leaves out the remainder.

    Args:
        ids: (N,) token ids.
        batch_size: B, the number of columns.
        key: The key of the config that says how many.

    Raises:
        UserError: A column would hold fewer than three tokens (two targets).
    """
    _require_tokens(ids, 3, batch_size, f"Set {key} to {max(1, len(ids) // 3)} or less")
    return _fold(ids, batch_size)


def columns_for_evaluation(ids: np.ndarray, columns: int, burn_in: int) -> Columns:
    """Arranges a stream so that each of its N − 1 targets is scored exactly once.

    The first column starts at the first token and scores from there. Each other column begins with
    ``burn_in`` targets that it does not score, so that its state has seen context. All
    columns have the same length; room left over is filled with unscored positions. A stream of at
    most ``burn_in`` targets is read in one column.

    Args:
        ids: (N,) token ids.
        columns: Largest B. One column is the exact evaluation of the whole stream.
        burn_in: Targets that each column but the first leaves unscored at its start.

    Raises:
        UserError: Fewer than two tokens, so nothing to score.
    """
    _require_tokens(ids, 2, 1, "Give valid and test files with more text")
    num_targets = len(ids) - 1
    if num_targets <= burn_in:
        columns = 1
    length = -(-(num_targets + (columns - 1) * burn_in) // columns)
    first_scored = np.full(columns, burn_in)
    first_scored[0] = 0
    starts = np.arange(columns) * (length - burn_in)
    return Columns(ids, starts, length, first_scored, np.zeros_like(starts))


def columns_as_awd_lstm_lm(ids: np.ndarray, columns: int) -> Columns:
    """Arranges a stream for evaluation as salesforce/awd-lstm-lm does.

    Columns have equal length, and each is read from a zero state and scored from its first target;
    the remainder, and the target at each border between columns, is not scored. The published code
    divides by the number of tokens; each column has one more of them than of targets.

    Args:
        ids: (N,) token ids.
        columns: B, at most N // 2.

    Raises:
        UserError: A column would hold fewer than two tokens.
    """
    _require_tokens(ids, 2, columns, "Set evaluation.protocol=standard")
    return replace(_fold(ids, columns), extra_divisor=columns)


@dataclass(frozen=True)
class EvaluationSettings:
    """How valid and test are read, as set in ``evaluation`` of a config.

    Args:
        protocol: ``standard`` is :func:`columns_for_evaluation`; ``awd_lstm_lm`` is
            :func:`columns_as_awd_lstm_lm`, which ignores the next two.
        columns: Largest B; 1 is the exact evaluation.
        burn_in: Unscored tokens at the start of each column but the first.
        window: Time steps that are read at once. Affects memory and time, but results only in
            modes of lmbench-evaluate that say so.

    Raises:
        ValueError: The protocol is unknown, or a number is out of range.
    """

    protocol: str = "standard"
    columns: int = 64
    burn_in: int = 512
    window: int = 70

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise ValueError(f"protocol must be one of {known}, not {self.protocol!r}")
        for name, least in (("columns", 1), ("burn_in", 0), ("window", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")

    def arrange(self, ids: np.ndarray, split: str) -> Columns:
        """Arranges the ids, (N,), of ``valid`` or ``test``.

        Raises:
            UserError: The split is too short.
        """
        if self.protocol == "standard":
            return columns_for_evaluation(ids, self.columns, self.burn_in)
        return columns_as_awd_lstm_lm(ids, AWD_LSTM_LM_COLUMNS[split])

    def plain(self, columns: int | Mapping[str, int]) -> dict[str, Any]:
        """How the split was read, for results; ``columns`` is how many there were."""
        burn_in = self.burn_in if self.protocol == "standard" else 0
        return {"protocol": self.protocol, "columns": columns, "burn_in": burn_in}


def _require_tokens(ids: np.ndarray, least: int, columns: int, remedy: str) -> None:
    if len(ids) < least * columns:
        raise UserError(
            f"A split has {len(ids):,} tokens, too few for {columns} column(s) of at least {least} "
            f"tokens. {remedy}, or give a larger corpus."
        )


def _fold(ids: np.ndarray, columns: int) -> Columns:
    """Folds a stream as published: the last token of a column is only a target."""
    num_tokens = len(ids) // columns
    starts = np.arange(columns) * num_tokens
    return Columns(ids, starts, num_tokens - 1, np.zeros_like(starts), np.zeros_like(starts))
