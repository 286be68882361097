"""Full softmax. Shape letters: N tokens (any number of dimensions), H hidden, V vocabulary."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lmbench.loss.liger_cross_entropy import liger_cross_entropy
from lmbench.loss.linear_cross_entropy import autocast_dtype, linear_cross_entropy
from lmbench.model.head.base import Head


class Softmax(Head):
    """Linear layer and softmax over the vocabulary; weight from U(−0.1, 0.1), bias 0.

    Args:
        input_size: Size of the core's output, H.
        vocabulary_size: Number of words, V.
        bias: Whether there is a bias.
        kernel: What computes the loss in training: ``"chunked"`` is
            :func:`lmbench.loss.linear_cross_entropy.linear_cross_entropy`; ``"liger"``, on CUDA
            devices only, is the fused kernel of Liger-Kernel. The library is needed only in
            training.
        autocast: Whether, under autocast to bfloat16 (``trainer.precision=bf16-mixed``), the
            training loss is computed in bfloat16 rather than float32. Without gradients it is
            always computed in float32.

    Raises:
        ValueError: If ``kernel`` is unknown.
    """

    def __init__(
        self,
        input_size: int,
        vocabulary_size: int,
        *,
        bias: bool = True,
        kernel: str = "chunked",
        autocast: bool = True,
    ) -> None:
        super().__init__()
        if kernel not in ("chunked", "liger"):
            raise ValueError(f"kernel must be 'chunked' or 'liger', not {kernel!r}")
        self.input_size = input_size
        self.vocabulary_size = vocabulary_size
        self.kernel = kernel
        self.autocast = autocast
        self.weight = nn.Parameter(torch.empty(vocabulary_size, input_size))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size)) if bias else None
        nn.init.uniform_(self.weight, -0.1, 0.1)

    def loss(
        self,
        output: Float[Tensor, "*N H"],
        targets: Int[Tensor, "*N"],
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Float[Tensor, "..."]:
        """Negative log-likelihood of ``targets`` in nats, without ever holding all logits.

        See :func:`lmbench.loss.linear_cross_entropy.linear_cross_entropy`. Another ``kernel``
        replaces it only in training mode, and not for ``"none"``: the loss behind a perplexity is
        computed in float32, from the core's outputs, which autocast may have made bfloat16.

        Raises:
            UserError: If ``kernel`` does not work on the device of ``output``, or its library is
                not installed.
        """
        weights = self.weight, self.bias
        dtype = autocast_dtype(output.device.type) if self.autocast else None
        options = {"reduction": reduction, "dtype": dtype}
        if self.kernel == "liger" and reduction != "none" and self.training:
            return liger_cross_entropy(output, *weights, targets, **options)
        return linear_cross_entropy(output, *weights, targets, **options)

    def log_probs(self, output: Float[Tensor, "*N H"]) -> Float[Tensor, "*N V"]:
        """Log-probabilities of all words, in float32 or float64 even under autocast."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(output.device.type, enabled=False):
            logits = functional.linear(output.to(dtype), self.weight.to(dtype), bias)
            return logits.log_softmax(-1)
