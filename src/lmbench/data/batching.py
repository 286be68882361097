"""Token streams cut into columns, and columns into BPTT windows.

Shape letters: T time steps of a window, B columns, L tokens of a column, N tokens of a split.

A stream is read in B columns side by side. A window is T consecutive rows of all columns, and the
next window goes on where it stopped, so the recurrent state can be carried from window to window.
"""

from collections.abc import Iterator
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
            over the base length (Merity et al. 2017, section 5), or 1.
        num_scored: number of targets that are scored, known without a look at the tensor.
    """

    tokens: Int[Tensor, "T B"]
    targets: Int[Tensor, "T B"]
    lr_scale: float
    num_scored: int


def columns_for_training(ids: np.ndarray, batch_size: int) -> Int[Tensor, "L B"]:
    """Folds a stream into columns of equal length; the remainder at its end is left out.

    Args:
        ids: (N,) token ids.
        batch_size: B, the number of columns.

    Raises:
        UserError: a column would hold fewer than three tokens (two targets).
    """
    length = len(ids) // batch_size
    if length < 3:
        raise UserError(
            f"The training split has {len(ids):,} tokens, too few for batching.batch_size="
            f"{batch_size} columns of at least 3 tokens. Set batching.batch_size to "
            f"{max(1, len(ids) // 3)} or less, or give a larger corpus."
        )
    columns = ids[: length * batch_size].reshape(batch_size, length).T
    return torch.from_numpy(columns.astype(np.int64, order="C"))


def columns_for_evaluation(
    ids: np.ndarray, columns: int, burn_in: int
) -> tuple[Int[Tensor, "T B"], Int[Tensor, "T B"]]:
    """Arranges a stream so that each of its N − 1 targets is scored exactly once.

    The first column starts at the first token and scores from there. Each other column starts
    ``burn_in`` tokens before the first target it scores, so that its state has seen context. All
    columns have the same length; what is left over is filled with unscored positions. A stream too
    short for two columns and their burn-in is read in one.

    Args:
        ids: (N,) token ids.
        columns: B at most. One column is the exact evaluation of the whole stream.
        burn_in: tokens that each column but the first reads before it scores.

    Returns:
        tokens and targets, both (T, B), ``IGNORE_INDEX`` where a target is not scored.

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
    stride = length - burn_in
    starts = np.arange(columns) * stride
    rows = starts + np.arange(length)[:, None]
    inside = rows < num_targets
    scored = inside.copy()
    scored[:burn_in, 1:] = False
    rows = np.where(inside, rows, 0)
    tokens = torch.from_numpy(ids[rows].astype(np.int64))
    targets = torch.from_numpy(np.where(scored, ids[rows + 1], IGNORE_INDEX).astype(np.int64))
    return tokens, targets


def columns_as_published(
    ids: np.ndarray, columns: int
) -> tuple[Int[Tensor, "T B"], Int[Tensor, "T B"]]:
    """Arranges a stream for evaluation as salesforce/awd-lstm-lm does.

    Columns of equal length, each from a zero state and scored from its first target on; what is
    left over at the end, and the target at each border between columns, is not scored.

    Args:
        ids: (N,) token ids.
        columns: B, at most N // 2.

    Returns:
        tokens and targets, both (T, B) with T = N // B − 1.

    Raises:
        UserError: a column would hold fewer than two tokens.
    """
    length = len(ids) // columns
    if length < 2:
        raise UserError(
            f"A split of {len(ids)} token(s) has nothing to score in {columns} columns, as "
            "evaluation.protocol=published reads it. Set evaluation.protocol=standard."
        )
    rows = ids[: length * columns].reshape(columns, length).T.astype(np.int64, order="C")
    return torch.from_numpy(rows[:-1]), torch.from_numpy(rows[1:])


class TrainingWindows:
    """The windows of one epoch over training columns.

    Window lengths are drawn from ``(seed, epoch)`` alone, so the number of windows is known before
    the first one is read and any epoch can be reproduced by itself.

    Args:
        columns: (L, B) from ``columns_for_training``.
        bptt: base length of a window.
        variable: draw lengths as Merity et al. 2017 (section 5) do: base ``bptt`` with probability
            .95, else ``bptt`` / 2; length max(5, ⌊N(base, 5)⌋). Otherwise all have length ``bptt``.
        seed: of the run.
        epoch: from 0.
        scale_lr: give each window its drawn length over ``bptt`` as ``lr_scale``, not 1.
    """

    def __init__(
        self,
        columns: Int[Tensor, "L B"],
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
        generator = np.random.default_rng((seed, epoch))
        row, last_row = 0, len(columns) - 2
        while row < last_row:
            length = bptt
            if variable:
                base = bptt if generator.random() < 0.95 else bptt / 2
                length = max(5, int(generator.normal(base, 5)))
            self._lengths.append(length)
            row += length

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[Batch]:
        row = 0
        for length in self._lengths:
            end = min(row + length, len(self._columns) - 1)
            targets = self._columns[row + 1 : end + 1]
            lr_scale = length / self._bptt if self._scale_lr else 1.0
            yield Batch(self._columns[row:end], targets, lr_scale, num_scored=targets.numel())
            row = end


class EvaluationWindows:
    """Consecutive windows of fixed length, the last one partial, over evaluation columns."""

    def __init__(
        self, tokens: Int[Tensor, "L B"], targets: Int[Tensor, "L B"], *, window: int
    ) -> None:
        self._tokens = tokens
        self._targets = targets
        self._window = window
        scored_per_row = (targets != IGNORE_INDEX).sum(dim=1)
        self._num_scored = [int(part.sum()) for part in scored_per_row.split(window)]

    def __len__(self) -> int:
        return len(self._num_scored)

    def __iter__(self) -> Iterator[Batch]:
        windows = zip(
            self._tokens.split(self._window),
            self._targets.split(self._window),
            self._num_scored,
            strict=True,
        )
        for tokens, targets, num_scored in windows:
            yield Batch(tokens, targets, 1.0, num_scored)
