"""What every head offers. Shape letters: N tokens (any number of dimensions), H hidden, V words."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lmbench.loss.linear_cross_entropy import CHUNK_BYTES
from lmbench.model.contracts import Dropout


class Head(nn.Module, ABC):
    """A module that turns a core's outputs into distributions over the words.

    A subclass computes :meth:`loss` and :meth:`log_probs`, of the same distribution; the rest
    follows from them. The loss gives every parameter a gradient, even if of zeros.

    A config's head is built with ``input_size`` and ``vocabulary_size``. If its ``__init__`` has an
    argument ``counts``, a new model's head gets the number of times that each word occurs in
    training, ``(V,)``, by id. A saved model's does not, so the argument needs a default, and what
    is derived from the counts belongs in ``state_dict``.

    Attributes:
        input_size: Size of the core's output, H.
        vocabulary_size: Number of words, V.
        weight: Vectors of the words, ``(V, H)``, which a tied model shares with the embedding.
        dropouts: All dropouts of the module, as in :class:`lmbench.model.contracts.Core`.
        temperature: T of :meth:`nats`; below 1, likely words become likelier.
        layout_arguments: As in :class:`lmbench.model.contracts.Core`.
    """

    input_size: int
    vocabulary_size: int
    weight: nn.Parameter
    dropouts: Sequence[Dropout] = ()
    temperature: float = 1.0
    layout_arguments: ClassVar[tuple[str, ...]] = ()

    def tie(self, weight: Float[nn.Parameter, "V H"]) -> None:
        """Replaces the head's own weight with the embedding's, permanently.

        Raises:
            ValueError: If the head cannot share a weight.
        """
        self.weight = weight

    def embedding_rows(self, words: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
        """Rows of a tied weight for ``words``: their ids, unless the head reorders them."""
        return words

    @abstractmethod
    def loss(
        self,
        output: Float[Tensor, "*N H"],
        targets: Int[Tensor, "*N"],
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Float[Tensor, "..."]:
        """Negative log-likelihood of ``targets`` in nats, in float32 or float64 even in autocast.

        Args:
            output: Outputs of the core, ``(*N, H)``.
            targets: Ids of the right words, ``(*N,)``; -100 adds nothing to the loss or to any
                gradient.
            reduction: ``"mean"`` over the scored targets, ``"sum"``, or ``"none"``: one value per
                target, ``(*N,)``, 0 where ignored.
        """

    @abstractmethod
    def log_probs(self, output: Float[Tensor, "*N H"]) -> Float[Tensor, "*N V"]:
        """Log-probabilities of all words, by id, in float32 or float64 even in autocast."""

    def nats(
        self, output: Float[Tensor, "*N H"], targets: Int[Tensor, "*N"]
    ) -> Float[Tensor, "*N"]:
        """What :meth:`loss` gives each target, at the head's ``temperature`` T.

        The probabilities at T are p(w)^(1/T), divided by their sum over all words.
        """
        if self.temperature == 1.0:
            return self.loss(output, targets, reduction="none")
        # A part has four matrices over all words: logits, their log-softmax, both again for T.
        rows = max(1, CHUNK_BYTES // (4 * self.vocabulary_size * output.element_size()))
        if self.training and self.dropouts:  # with one mask for a column's window
            dim, size = 1, max(1, rows // len(output))
            parts = output.split(size, 1), targets.split(size, 1)
        else:
            dim = 0
            parts = output.flatten(0, -2).split(rows), targets.flatten().split(rows)
        nats = [
            functional.cross_entropy(
                (self.log_probs(part) / self.temperature).flatten(0, -2),
                words.flatten(),
                reduction="none",
            ).reshape(words.shape)
            for part, words in zip(*parts, strict=True)
        ]
        return torch.cat(nats, dim).reshape(targets.shape)

    def surprisal_and_entropy(
        self, output: Float[Tensor, "N H"], targets: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Surprisal of ``targets`` and entropy of the distributions over words, in nats.

        Args:
            output: Outputs of the core, ``(N, H)``.
            targets: Ids of words, ``(N,)``.
        """
        log_probs = self.log_probs(output).float()
        surprisal = -log_probs.gather(1, targets[:, None]).squeeze(1)
        return surprisal, -torch.linalg.vecdot(log_probs.exp(), log_probs)
