"""Token streams cut into columns, and columns into BPTT windows.

Shape letters: T time steps of a window, B columns, L tokens of a column, N tokens of a split.

A stream is read in B columns side by side. A window is T consecutive rows of all columns, and the
next window goes on where it stopped, so the recurrent state can be carried from window to window.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lmbench.errors import UserError

IGNORE_INDEX = -100
"""Target of a position that is read but not scored, as in ``torch.nn.functional.cross_entropy``."""


class Batch(NamedTuple):
    """One BPTT window.

    Attributes:
        tokens: (T, B) input ids.
        targets: (T, B) the ids that follow them; ``IGNORE_INDEX`` where nothing is scored.
        lr_scale: what the learning rate of this step is multiplied by: the window's drawn length
            over the base length (Merity et al. 2017, section 4.1), or 1.
        num_scored: number of targets that are scored, known without a look at the tensor.
    """

    tokens: Int[Tensor, "T B"]
    targets: Int[Tensor, "T B"]
    lr_scale: float
    num_scored: int


@dataclass(frozen=True, eq=False)
class Columns:
    """A stream read side by side in B columns of equal length, of which nothing is copied.

    Row r of a column that starts at s reads token s + r and has token s + r + 1 as its target.

    Args:
        ids: (N,) the stream, which may lie on disk.
        starts: (B,) where each column starts.
        num_rows: L, of each column.
        first_scored: (B,) the row from which on each column is scored.
    """

    ids: np.ndarray
    starts: np.ndarray
    num_rows: int
    first_scored: np.ndarray

    @property
    def num_columns(self) -> int:
        """B."""
        return len(self.starts)

    def read(
        self, start: int = 0, end: int | None = None
    ) -> tuple[Int[Tensor, "T B"], Int[Tensor, "T B"]]:
        """Tokens and targets of the rows from ``start`` to before ``end``.

        Rows beyond the stream are filled with its first token. Their targets, and those before
        ``first_scored``, are ``IGNORE_INDEX``.
        """
        rows = np.arange(start, self.num_rows if end is None else end)[:, None]
        places = self.starts + rows
        inside = places < len(self.ids) - 1
        places = np.where(inside, places, 0)
        scored = inside & (rows >= self.first_scored)
        targets = np.where(scored, self.ids[places + 1], IGNORE_INDEX)
        tokens = torch.from_numpy(self.ids[places].astype(np.int64))
        return tokens, torch.from_numpy(targets.astype(np.int64))

    def num_scored(self, start: int, end: int) -> int:
        """Number of targets that are scored in these rows."""
        ends = np.minimum(end, len(self.ids) - 1 - self.starts)
        return int(np.maximum(ends - np.maximum(start, self.first_scored), 0).sum())

    def share(self, part: int, num_parts: int) -> "Columns":
        """One of as many equal parts, which must divide the number of columns."""
        size = self.num_columns // num_parts
        mine = slice(part * size, (part + 1) * size)
        return replace(self, starts=self.starts[mine], first_scored=self.first_scored[mine])


def columns_for_training(ids: np.ndarray, batch_size: int) -> Columns:
    """Folds a stream into columns of equal length; the remainder at its end is left out.

    Args:
        ids: (N,) token ids.
        batch_size: B, the number of columns.

    Raises:
        UserError: a column would hold fewer than three tokens (two targets).
    """
    num_tokens = len(ids) // batch_size
    if num_tokens < 3:
        raise UserError(
            f"The training split has {len(ids):,} tokens, too few for batching.batch_size="
            f"{batch_size} columns of at least 3 tokens. Set batching.batch_size to "
            f"{max(1, len(ids) // 3)} or less, or give a larger corpus."
        )
    return _fold(ids, batch_size)


def columns_for_evaluation(ids: np.ndarray, columns: int, burn_in: int) -> Columns:
    """Arranges a stream so that each of its N − 1 targets is scored exactly once.

    The first column starts at the first token and scores from there. Each other column starts
    ``burn_in`` tokens before the first target it scores, so that its state has seen context. All
    columns have the same length; what is left over is filled with unscored positions. A stream too
    short for two columns and their burn-in is read in one.

    Args:
        ids: (N,) token ids.
        columns: B at most. One column is the exact evaluation of the whole stream.
        burn_in: tokens that each column but the first reads before it scores.

    Raises:
        UserError: fewer than two tokens, so nothing to score.
    """
    num_targets = len(ids) - 1
    if num_targets < 1:
        raise UserError(
            f"A split of {len(ids)} token(s) has nothing to score: at least 2 are needed. "
            "Give valid and test files with more text."
        )
    if num_targets <= burn_in:
        columns = 1
    length = -(-(num_targets + (columns - 1) * burn_in) // columns)
    first_scored = np.full(columns, burn_in)
    first_scored[0] = 0
    return Columns(ids, np.arange(columns) * (length - burn_in), length, first_scored)


def columns_as_published(ids: np.ndarray, columns: int) -> Columns:
    """Arranges a stream for evaluation as salesforce/awd-lstm-lm does.

    Columns of equal length, each from a zero state and scored from its first target on; what is
    left over at the end, and the target at each border between columns, is not scored.

    Args:
        ids: (N,) token ids.
        columns: B, at most N // 2.

    Raises:
        UserError: a column would hold fewer than two tokens.
    """
    if len(ids) // columns < 2:
        raise UserError(
            f"A split of {len(ids)} token(s) has nothing to score in {columns} columns, as "
            "evaluation.protocol=published reads it. Set evaluation.protocol=standard."
        )
    return _fold(ids, columns)


def _fold(ids: np.ndarray, columns: int) -> Columns:
    """As published: the last token of a column is a target only."""
    num_tokens = len(ids) // columns
    starts = np.arange(columns) * num_tokens
    return Columns(ids, starts, num_tokens - 1, np.zeros(columns, dtype=np.int64))


class TrainingWindows:
    """The windows of one epoch over training columns.

    Window lengths are drawn from ``(seed, epoch)`` alone, so the number of windows is known before
    the first one is read and any epoch can be reproduced by itself.

    Args:
        columns: from ``columns_for_training``.
        bptt: base length of a window.
        variable: draw lengths as Merity et al. 2017 (section 4.1) do: base ``bptt`` with
            probability .95, else ``bptt`` / 2; length max(5, ⌊N(base, 5)⌋). Otherwise all have
            length ``bptt``.
        seed: of the run.
        epoch: from 0.
        scale_lr: give each window its drawn length over ``bptt`` as ``lr_scale``, not 1.

    Iterating starts at the window that ``load_state_dict`` named.
    """

    def __init__(
        self,
        columns: Columns,
        bptt: int,
        *,
        variable: bool,
        seed: int,
        epoch: int,
        scale_lr: bool = True,
    ) -> None:
        self._columns = columns
        self._bptt = bptt
        self._scale_lr = scale_lr
        # A last window of a single target is skipped, as in the published training.
        self._lengths: list[int] = []
        self._num_done = 0
        generator = np.random.default_rng((seed, epoch))
        row = 0
        while row < columns.num_rows - 1:
            length = bptt
            if variable:
                base = bptt if generator.random() < 0.95 else bptt / 2
                length = max(5, int(generator.normal(base, 5)))
            self._lengths.append(length)
            row += length

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[Batch]:
        first, self._num_done = self._num_done, 0
        row = sum(self._lengths[:first])
        for index, length in enumerate(self._lengths[first:], first):
            end = min(row + length, self._columns.num_rows)
            tokens, targets = self._columns.read(row, end)
            lr_scale = length / self._bptt if self._scale_lr else 1.0
            self._num_done = index
            yield Batch(tokens, targets, lr_scale, num_scored=targets.numel())
            row = end
        self._num_done = 0

    def state_dict(self) -> dict[str, int]:
        """How many windows come before the one that was given last."""
        return {"num_done": self._num_done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets the next iteration start behind that many windows."""
        self._num_done = state_dict["num_done"]


class EvaluationWindows:
    """Consecutive windows of fixed length, the last one partial.

    Args:
        columns: from ``columns_for_evaluation`` or ``columns_as_published``.
        window: length of a window.
    """

    def __init__(self, columns: Columns, *, window: int) -> None:
        self._columns = columns
        self._window = window

    def __len__(self) -> int:
        return math.ceil(self._columns.num_rows / self._window)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self._columns.num_rows, self._window):
            end = min(start + self._window, self._columns.num_rows)
            yield Batch(*self._columns.read(start, end), 1.0, self._columns.num_scored(start, end))
