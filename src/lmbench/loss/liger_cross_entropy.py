"""Cross-entropy of a linear layer by the kernel of the optional library Liger-Kernel.

Shape letters: N tokens (any number of dimensions), H hidden, V vocabulary.
"""

import importlib
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmbench.errors import UserError
from lmbench.perplexity import IGNORE_INDEX


def liger_cross_entropy(
    input: Float[Tensor, "*N H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, "*N"],
    *,
    reduction: Literal["mean", "sum"],
    dtype: torch.dtype | None,
) -> Float[Tensor, ""]:
    """Negative log-likelihood of ``targets`` under ``softmax(input @ weight.T + bias)``, on CUDA.

    For training: with ``dtype`` of bfloat16, logits and gradients are rounded to it, as those of a
    linear layer are. Sums over tokens are taken in float32.

    The arguments are those of :func:`lmbench.loss.linear_cross_entropy.linear_cross_entropy`,
    except that there is no ``"none"``, and targets of ``IGNORE_INDEX`` are the ignored ones.

    Source: Hsu et al. 2024 (arXiv 2410.10989).

    Returns:
        Nats in float32; 0 if no target is scored. Its graph allows one backward pass.

    Raises:
        UserError: If the tensors are not on a CUDA device, or the library is not installed.
    """
    if input.device.type != "cuda":
        raise UserError(
            "model.head.kernel=liger computes the training loss on CUDA devices only, not on the "
            f"{input.device.type}. Set model.head.kernel=chunked, or trainer.accelerator=cuda."
        )
    try:
        library = importlib.import_module("liger_kernel.transformers.functional")
    except ImportError as error:
        raise UserError(
            "model.head.kernel=liger needs the library Liger-Kernel, which cannot be imported "
            f"({error}). Run pip install -e '.[cuda]' in lmbench's checkout, or set "
            "model.head.kernel=chunked."
        ) from error
    dtype = dtype or weight.dtype
    # Cast once, here: under autocast the library would cast the weight again for every chunk.
    rows = input.reshape(-1, input.shape[-1]).to(dtype).contiguous()
    with torch.autocast("cuda", enabled=False):
        return library.liger_fused_linear_cross_entropy(
            rows,
            weight.to(dtype),
            targets.reshape(-1),
            bias=None if bias is None else bias.to(dtype),
            ignore_index=IGNORE_INDEX,
            reduction=reduction,
            accum_dtype=torch.float32,
        )
