"""Language model: embedding → core → head.

Shape letters: T time steps, B columns, E embedding, H hidden.
"""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmbench.model.contracts import Core, CoreOutput, Dropout, State
from lmbench.model.embedding import Embedding
from lmbench.model.head.base import Head


class LanguageModel(nn.Module):
    """A recurrent language model without memory of its own: the caller carries the state.

    Args:
        embedding: From word ids to vectors.
        core: From embeddings and a state to outputs and the next state.
        head: From the core's outputs to a distribution over words.
        tied: Whether embedding and head share one weight (Press and Wolf 2017, arXiv 1608.05859;
            Inan et al. 2017, arXiv 1611.01462). The head then takes the embedding's.

    Raises:
        ValueError: If the parts' sizes do not fit together.
    """

    def __init__(
        self,
        embedding: Embedding,
        core: Core,
        head: Head,
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        width, output_size = embedding.embedding_size, core.output_size
        sizes = [
            ("embedding_size", width, "the core's input_size", core.input_size),
            ("the core's output_size", output_size, "the head's input_size", head.input_size),
        ]
        if tied:
            words = embedding.vocabulary_size
            sizes += [
                ("with tied weights embedding_size", width, "the core's output_size", output_size),
                ("with tied weights vocabulary_size", words, "the head's", head.vocabulary_size),
            ]
        for left, size, right, other_size in sizes:
            if size != other_size:
                raise ValueError(f"{left} ({size}) must equal {right} ({other_size})")
        self.embedding = embedding
        self.core = core
        self.head = head
        self.tied = tied
        if tied:
            self.head.tie(self.embedding.weight)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so where tokens must be."""
        return self.embedding.weight.device

    @property
    def dropouts(self) -> list[Dropout]:
        """The dropouts of all parts."""
        return [*self.embedding.dropouts, *self.core.dropouts, *self.head.dropouts]

    @property
    def num_parameters(self) -> int:
        """Number of trained values; a tied weight counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def weights_sha256(self) -> str:
        """Hex SHA-256 of the weights and their names, by which results identify their model."""
        digest = hashlib.sha256()
        for name, parameter in self.named_parameters():
            digest.update(name.encode())
            content = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(content.numpy().data)
        return digest.hexdigest()

    def forward(self, tokens: Int[Tensor, "T B"], state: State | None = None) -> CoreOutput:
        """Reads a window.

        Args:
            tokens: Word ids, ``(T, B)``.
            state: The state that the previous window returned; None for zeros.

        Returns:
            Outputs for the head's ``loss`` or ``log_probs``, each ``(T, B, H)``, and the state.
        """
        return self.core(self.embed(tokens), state)  # (T, B, H)

    def embed(self, tokens: Int[Tensor, "T B"]) -> Float[Tensor, "T B E"]:
        """The words' vectors, which the core reads."""
        return self.embedding(self.head.embedding_rows(tokens) if self.tied else tokens)
