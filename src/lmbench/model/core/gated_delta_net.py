"""Gated DeltaNet. Shape letters: T time steps, B columns, H hidden, N heads."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lmbench.model.core.residual import CausalConv, GatedFeedForward, ResidualStack
from lmbench.model.core.stack import to_float32

CHUNK = 64  # steps at most


class GatedDeltaNet(ResidualStack):
    """Blocks of a linear recurrence whose state, a matrix, overwrites the value of each key.

    Source: Yang et al. 2024 (arXiv 2412.06464). A block is Gated DeltaNet's layer and a SwiGLU.
    Sizes and initial decays are those of flash-linear-attention: all keys of a step together are
    3/4 as wide as the block, its values 3/2. The convolution has a bias. Queries are not divided
    by the root of their size, since the norm that follows would cancel such a factor. Linear layers
    start as PyTorch's do, not with that library's normal distribution. The hybrids with attention
    are left out.

    Args:
        num_heads: Number of heads, N. In the paper, keys have 256 features per head.
        options: Those of :class:`lmbench.model.core.stack.Stack`. Weight dropout is on the weight
            that makes queries, keys, values and all gates.

    Raises:
        ValueError: As there, or if ``num_heads`` does not divide 3/4 of ``hidden_size``.
    """

    def __init__(self, *sizes: int, num_heads: int = 3, **options: Any) -> None:
        self._num_heads = num_heads
        super().__init__(*sizes, **options)

    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """A :class:`GatedDeltaNetLayer`."""
        return GatedDeltaNetLayer(input_size, self._num_heads)

    def make_feedforward(self, size: int) -> nn.Module:
        """A SwiGLU."""
        return GatedFeedForward(size, 8 * (size // 3), functional.silu)


class GatedDeltaNetLayer(nn.Module):
    """Convolution, the gated delta rule, a gated norm for each head, and a linear map back.

    Its state is ``(x, S)``: three inputs of the convolution, ``(3, B, 3 H)``, and ``(B, N, K, V)``,
    where K is 3/4 of H / N and V is 2 K.

    Args:
        size: H.
        num_heads: N.
    """

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or 3 * size % (4 * num_heads):
            raise ValueError(f"num_heads must divide 3/4 of hidden_size {size}, got {num_heads}")
        self.num_heads = num_heads
        keys = 3 * size // 4
        values = 2 * keys
        self.sizes = keys, values
        self.gates = nn.Linear(size, 2 * keys + 2 * values + 2 * num_heads, bias=False)
        self.conv = CausalConv(2 * keys + values)
        # These are A_log, dt and dt_bias in flash-linear-attention, as in Mamba-2.
        self.rate_log = nn.Parameter(torch.empty(num_heads).uniform_(0.0, 16.0).log())
        step = torch.empty(num_heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.step_bias = nn.Parameter(step.expm1().log())  # softplus turns it back into the step
        self.norm = nn.RMSNorm(values // num_heads, eps=1e-5)
        self.out = nn.Linear(values, size, bias=False)

    def forward(
        self,
        input: Float[Tensor, "T B H"],
        state: Sequence[Tensor] | None,
        weight_dropout: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, "T B H"], tuple[Tensor, ...]]:
        """Runs a window, from ``state`` or from zeros."""
        last, matrix = (None, None) if state is None else state
        keys, values = self.sizes
        made = to_float32(functional.linear(input, weight_dropout(self.gates.weight)))
        with torch.autocast(input.device.type, enabled=False):
            mixed, gate, step, strength = made.split(
                [2 * keys + values, values, self.num_heads, self.num_heads], -1
            )
            mixed, last = self.conv(mixed, last)
            query, key, value = (
                part.unflatten(-1, (self.num_heads, -1)).permute(1, 2, 0, 3).contiguous()
                for part in to_float32(functional.silu(mixed)).split([keys, keys, values], -1)
            )  # (B, N, T, …) each
            log_decay = -self.rate_log.exp() * functional.softplus(step + self.step_bias)
            if matrix is None:
                matrix = key.new_zeros(*key.shape[:2], key.shape[-1], value.shape[-1])
            output, matrix = gated_delta_rule(
                unit(query),
                unit(key),
                value,
                strength.sigmoid().permute(1, 2, 0),
                log_decay.permute(1, 2, 0),
                to_float32(matrix),
            )
            output = self.norm(output.permute(2, 0, 1, 3).to(self.norm.weight.dtype)).flatten(2)
            output = output * functional.silu(gate)
        return self.out(output.to(self.out.weight.dtype)), (last, matrix)


def unit(x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """Vectors scaled to length 1, except those near 0."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def gated_delta_rule(
    query: Float[Tensor, "*N T K"],
    key: Float[Tensor, "*N T K"],
    value: Float[Tensor, "*N T V"],
    strength: Float[Tensor, "*N T"],
    log_decay: Float[Tensor, "*N T"],
    state: Float[Tensor, "*N K V"],
) -> tuple[Float[Tensor, "*N T V"], Float[Tensor, "*N K V"]]:
    """All S_tᵀ q_t, where S_t = α_t (I − β_t k_t k_tᵀ) S_(t−1) + β_t k_t v_tᵀ, and the last S.

    Steps are taken chunk by chunk. What each step of a chunk adds to S for its key depends on what
    those before it add: a triangular system of equations (the WY form). Decays are exponentials of
    sums over the steps between, which are never differences of larger sums.

    Args:
        query: ``(…, T, K)``.
        key: ``(…, T, K)``, of length at most 1.
        value: ``(…, T, V)``.
        strength: β, ``(…, T)``, from 0 to 1.
        log_decay: ln α, ``(…, T)``, not above 0.
        state: S before the first step, ``(…, K, V)``.
    """
    num_chunks = -(-key.shape[-2] // CHUNK)
    outputs = []
    per_step = (x.unsqueeze(-1) for x in (strength, log_decay))
    tensors = (x.chunk(num_chunks, -2) for x in (query, key, value, *per_step))
    for q, k, v, beta, g in zip(*tensors, strict=True):
        since_start = g.cumsum(-2).exp()  # (…, C, 1) for the C steps of the chunk
        decay = g.expand(*g.shape[:-1], g.shape[-2]).tril(-1).cumsum(-2).exp().tril()  # (…, C, C)
        coupling = (beta * decay * (k @ k.mT)).tril(-1)
        added = torch.linalg.solve_triangular(
            coupling, beta * (v - since_start * k @ state), upper=False, unitriangular=True
        )
        outputs.append(since_start * q @ state + (decay * (q @ k.mT)) @ added)
        till_end = decay[..., -1, :].unsqueeze(-1)
        state = since_start[..., -1:, :] * state + (till_end * k).mT @ added
    return torch.cat(outputs, -2), state
