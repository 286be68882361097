"""Penalties on a recurrent network's outputs. Shape letters: T time steps, B columns, H hidden.

Source: Merity et al. 2017 (arXiv 1708.02182), section 4.6, in the mean-square form of the authors'
code. Both are unscaled: the caller multiplies by ``ar_alpha`` and ``tar_beta``. They are computed
in float32 at least: a sum of squares soon leaves float16's range.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def activation_regularization(output: Float[Tensor, "T B H"]) -> Float[Tensor, ""]:
    """Activation regularization (AR): mean(h²) of the last layer's outputs after dropout.

    >>> import torch
    >>> activation_regularization(torch.full((3, 2, 4), 0.5)).item()
    0.25
    """
    return _to_float32(output).square().mean()


def temporal_activation_regularization(raw_output: Float[Tensor, "T B H"]) -> Float[Tensor, ""]:
    """Temporal activation regularization (TAR): mean((h_t − h_{t−1})²), before dropout.

    It is 0 for a window of a single step.

    >>> import torch
    >>> ramp = torch.arange(5.0).reshape(5, 1, 1)
    >>> temporal_activation_regularization(ramp).item()
    1.0
    """
    raw_output = _to_float32(raw_output)
    difference = raw_output[1:] - raw_output[:-1]
    # Not mean(): over no differences it would be nan, and ruin the whole training step.
    return difference.square().sum() / max(1, difference.numel())


def _to_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
