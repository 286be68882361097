"""Language model: embedding → core → head. Shape letters: T time steps, B columns, H hidden."""

import hashlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmbench.model.core import CoreOutput, State
from lmbench.model.embedding import Embedding
from lmbench.model.head import AdaptiveSoftmax, Softmax


class LanguageModel(nn.Module):
    """A recurrent language model without memory of its own: the caller carries the state.

    Args:
        embedding: From word ids to vectors.
        core: Module with ``input_size`` and ``output_size`` whose forward takes embeddings and a
            state and returns a :class:`CoreOutput`.
        head: From the core's outputs to a distribution over words.
        tied: Whether embedding and head share one weight (Press and Wolf 2017, arXiv 1608.05859;
            Inan et al. 2017, arXiv 1611.01462). The head then takes the embedding's.

    Raises:
        ValueError: If the parts' sizes do not fit together.
    """

    def __init__(
        self,
        embedding: Embedding,
        core: nn.Module,
        head: Softmax | AdaptiveSoftmax,
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        core_input, core_output = core.input_size, core.output_size
        if tied:
            _require_equal(
                ("with tied weights embedding_size", embedding.embedding_size),
                ("the core's output_size", core_output),
            )
            _require_equal(
                ("with tied weights the embedding's vocabulary_size", embedding.vocabulary_size),
                ("the head's vocabulary_size", head.vocabulary_size),
            )
        _require_equal(
            ("embedding_size", embedding.embedding_size), ("the core's input_size", core_input)
        )
        _require_equal(
            ("the core's output_size", core_output), ("the head's input_size", head.input_size)
        )
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
    def num_parameters(self) -> int:
        """Number of trained values; a tied weight counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def weights_sha256(self) -> str:
        """Hex SHA-256 of the weights and their names, by which results know whose they are."""
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
            state: The state that the window before returned; None for zeros.

        Returns:
            Outputs for the head's ``loss`` or ``log_probs``, each ``(T, B, H)``, and the state.
        """
        return self.core(self.embed(tokens), state)  # (T, B, H)

    def embed(self, tokens: Int[Tensor, "T B"]) -> Float[Tensor, "T B E"]:
        """The words' vectors, which the core reads."""
        return self.embedding(self.head.embedding_rows(tokens) if self.tied else tokens)


def _require_equal(left: tuple[str, Any], right: tuple[str, Any]) -> None:
    if left[1] != right[1]:
        raise ValueError(f"{left[0]} ({left[1]}) must equal {right[0]} ({right[1]})")
