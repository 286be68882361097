"""Softmax temperature: flatter or sharper distributions than the model's own.

Source: Melis et al. 2018, "Pushing the bounds of dropout" (arXiv 1805.09208), who tune it on valid.
Shape letters: N tokens (any number of dimensions), H hidden.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from lmbench.evaluation.evaluator import Evaluator, ReadingMode
from lmbench.evaluation.tuning import Grid, require_grid
from lmbench.loss.linear_cross_entropy import CHUNK_BYTES
from lmbench.perplexity import IGNORE_INDEX


@dataclass
class Temperature(ReadingMode):
    """A softmax temperature T.

    The probabilities are p(w)^(1/T), divided by their sum over all words. Dynamic evaluation learns
    from these, too; the statistics of its gradients are those at T = 1.

    Args:
        value: T; below 1, likely words become likelier. With 1 nothing changes.
        grid: What tuning tries.

    Raises:
        ValueError: ``value`` is not finite, or not more than 0.
    """

    name: ClassVar[str] = "temperature"
    remedy: ClassVar[str] = "Set evaluation.temperature.value higher."

    value: float = 1.0
    grid: Grid | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.value < math.inf:
            raise ValueError(f"value must be finite and more than 0, not {self.value}")
        require_grid(self)

    @contextmanager
    def during(self, evaluator: Evaluator) -> Iterator[None]:
        """Replaces the head's loss with one of its own, and restores it afterwards."""
        head = evaluator.model.head

        def loss(
            output: Float[Tensor, "*N H"],
            targets: Int[Tensor, "*N"],
            *,
            reduction: str = "mean",
        ) -> Float[Tensor, "..."]:
            # A part has four matrices over all words: logits, their log-softmax, both again for T.
            rows = max(1, CHUNK_BYTES // (4 * head.vocabulary_size * output.element_size()))
            if evaluator.model.training and head.dropouts:  # with one mask for a column's window
                dim, size = 1, max(1, rows // len(output))
                parts = output.split(size, 1), targets.split(size, 1)
            else:
                dim = 0
                parts = output.flatten(0, -2).split(rows), targets.flatten().split(rows)
            nats = [
                functional.cross_entropy(
                    (head.log_probs(part) / self.value).flatten(0, -2),
                    words.flatten(),
                    reduction="none",
                ).reshape(words.shape)
                for part, words in zip(*parts, strict=True)
            ]
            found = torch.cat(nats, dim).reshape(targets.shape)
            if reduction == "none":
                return found
            return found.sum() / ((targets != IGNORE_INDEX).sum() if reduction == "mean" else 1)

        if self.value == 1.0:
            yield
            return
        head.loss = loss
        try:
            yield
        finally:
            del head.loss
