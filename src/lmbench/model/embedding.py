"""From word ids to vectors. Shape letters: E embedding, V vocabulary."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmbench.model.dropout import EmbeddingDropout, require_probabilities


class Embedding(nn.Module):
    """Word embedding, drawn from U(−0.1, 0.1), with embedding dropout in training.

    Args:
        vocabulary_size: Number of words, V.
        embedding_size: Size of a word's vector, E.
        dropout: Probability that all occurrences of a word are dropped.

    Raises:
        ValueError: If ``dropout`` is not in [0, 1).
    """

    def __init__(self, vocabulary_size: int, embedding_size: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        require_probabilities(dropout=dropout)
        self.vocabulary_size = vocabulary_size
        self.embedding_size = embedding_size
        self.dropout = EmbeddingDropout(dropout)
        self.dropouts = (self.dropout,)
        self.weight = nn.Parameter(torch.empty(vocabulary_size, embedding_size))
        nn.init.uniform_(self.weight, -0.1, 0.1)

    def forward(self, tokens: Int[Tensor, "*N"]) -> Float[Tensor, "*N E"]:
        """Vectors of the words ``tokens``."""
        return self.dropout(tokens, self.weight)
