"""Columns cut into BPTT windows.

Shape letters: T time steps of a window, B columns.

A window is T consecutive rows of all columns, and the next window starts where it ended, so the
recurrent state can be carried from window to window.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from lmbench.data.columns import Columns


class Batch(NamedTuple):
    """One BPTT window.

    Attributes:
        tokens: (T, B) input ids.
        targets: (T, B) the ids that follow them; ``IGNORE_INDEX`` where nothing is scored.
        lr_scale: What the learning rate of this step is multiplied by: the window's drawn length
            over the base length (Merity et al. 2017, section 4.1), or 1.
        num_scored: Number of targets that are scored, known without reading the tensor.
    """

    tokens: Int[Tensor, "T B"]
    targets: Int[Tensor, "T B"]
    lr_scale: float
    num_scored: int


class TrainingWindows:
    """The windows of one epoch over training columns.

    Window lengths are drawn from ``(seed, epoch)`` alone, so the number of windows is known before
    the first one is read and any epoch can be reproduced by itself.

    Args:
        columns: As ``columns_for_training`` arranges them.
        bptt: Base length of a window.
        variable: Whether to draw lengths as Merity et al. 2017 (section 4.1) do: base ``bptt`` with
            probability .95, else ``bptt`` / 2; length max(5, ⌊N(base, 5)⌋). Otherwise all have
            length ``bptt``.
        seed: The run's seed.
        epoch: Number of the epoch, from 0.
        scale_lr: Whether each window's ``lr_scale`` is its drawn length over ``bptt``, else 1.

    Iteration starts at the window set by ``load_state_dict``.
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
        """The number of windows before the last one yielded."""
        return {"num_done": self._num_done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Makes the next iteration start after that many windows."""
        self._num_done = state_dict["num_done"]


class EvaluationWindows:
    """Consecutive windows of fixed length, the last one partial.

    Args:
        columns: As ``columns_for_evaluation`` or ``columns_as_awd_lstm_lm`` arranges them.
        window: Length of a window.
    """

    def __init__(self, columns: Columns, *, window: int) -> None:
        self._columns = columns
        self._windows = columns.windows(window)

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self._windows:
            yield Batch(*self._columns.read(*rows), 1.0, self._columns.num_scored(*rows))
