"""HGRN2. Shape letters: T time steps, B columns, H hidden, N heads, D size of a head."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lmbench.model.core.residual import GatedFeedForward, ResidualStack
from lmbench.model.core.stack import to_float32

CHUNK = 32  # steps, a power of two


class HGRN2(ResidualStack):
    """Blocks of a linear recurrence whose state is a matrix for each head.

    Source: Qin et al. 2024 (arXiv 2404.07904). A block is HGRN2's layer and a SwiGLU. As in the
    authors' language models and flash-linear-attention, queries pass through a SiLU, values have
    no activation, one norm spans all heads, and there are no biases. A layer's forget gates have a
    learned lower bound for each feature, which is 0 in the first layer and rises from layer to
    layer; all bounds are one parameter of the core. Linear layers start as PyTorch's do, not with
    the normal distribution of flash-linear-attention.

    Args:
        num_heads: Number of heads, N, each with a state of (H / N)² numbers. The paper's language
            models have heads of 128 features.
        options: Those of :class:`lmbench.model.core.stack.Stack`. Weight dropout is on the weight
            that makes queries, forget gates and values.

    Raises:
        ValueError: As there, or if ``num_heads`` does not divide ``hidden_size``.
    """

    layout_arguments = ("num_heads",)

    def __init__(self, *sizes: int, num_heads: int = 4, **options: Any) -> None:
        self._num_heads = num_heads
        super().__init__(*sizes, **options)

    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """A :class:`HGRN2Layer`."""
        return HGRN2Layer(input_size, self._num_heads)

    def make_feedforward(self, size: int) -> nn.Module:
        """A SwiGLU."""
        return GatedFeedForward(size, 8 * (size // 3), functional.silu)

    def build(self, hidden_size: int, num_layers: int) -> None:
        """Makes everything that has weights."""
        super().build(hidden_size, num_layers)
        self.lower_bounds = nn.Parameter(torch.zeros(num_layers, hidden_size))

    def layer_arguments(self) -> list[dict[str, Tensor]]:
        """The lower bound of each layer."""
        shares = self.lower_bounds.softmax(0)
        return [{"lower_bound": bound} for bound in shares.cumsum(0) - shares[0]]


class HGRN2Layer(nn.Module):
    """Queries, forget gates and values, the recurrence, a norm, and a linear map back.

    Its state is ``(S,)``, ``(B, N, D, D)``.

    Args:
        size: H.
        num_heads: N.
    """

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or size % num_heads:
            raise ValueError(f"num_heads must divide hidden_size {size}, got {num_heads}")
        self.num_heads = num_heads
        self.gates = nn.Linear(size, 3 * size, bias=False)
        self.norm = nn.RMSNorm(size, eps=1e-5)
        self.out = nn.Linear(size, size, bias=False)

    def forward(
        self,
        input: Float[Tensor, "T B H"],
        state: Sequence[Tensor] | None,
        weight_dropout: Callable[[Tensor], Tensor],
        lower_bound: Float[Tensor, " H"],
    ) -> tuple[Float[Tensor, "T B H"], tuple[Tensor, ...]]:
        """Runs a window, from ``state`` or from zeros; no forget gate is below ``lower_bound``."""
        gates = to_float32(functional.linear(input, weight_dropout(self.gates.weight)))
        with torch.autocast(input.device.type, enabled=False):
            heads = gates.unflatten(-1, (3, self.num_heads, -1)).permute(2, 1, 3, 0, 4)
            query, forget, value = heads.contiguous()  # (B, N, T, D) each
            bound = lower_bound.to(gates.dtype).view(self.num_heads, 1, -1)
            forget = bound + (1.0 - bound) * forget.sigmoid()
            if state is None:
                state = (gates.new_zeros(*forget.shape[:2], *[forget.shape[-1]] * 2),)
            output, last = gated_attention(
                functional.silu(query), 1.0 - forget, value, forget, to_float32(state[0])
            )
            output = output.permute(2, 0, 1, 3).flatten(2)
            output = self.norm(output.to(self.norm.weight.dtype))
        return self.out(output), (last,)


def gated_attention(
    query: Float[Tensor, "*N T K"],
    key: Float[Tensor, "*N T K"],
    value: Float[Tensor, "*N T V"],
    forget: Float[Tensor, "*N T K"],
    state: Float[Tensor, "*N K V"],
) -> tuple[Float[Tensor, "*N T V"], Float[Tensor, "*N K V"]]:
    """All q_t S_t, where S_t = diag(f_t) S_(t−1) + k_t v_tᵀ, and the last S.

    Steps are taken chunk by chunk. Within one, pairs of neighbours are joined, then pairs of pairs,
    and so on. When two parts are joined, queries in the second carry the share kept since the
    second began, and keys in the first the share kept until the first ends; these are products of
    forget gates, so none is larger than 1, and nothing is divided by them.

    Args:
        query: ``(…, T, K)``.
        key: ``(…, T, K)``.
        value: ``(…, T, V)``.
        forget: ``(…, T, K)``, from 0 to 1.
        state: S before the first step, ``(…, K, V)``.
    """
    outputs = []
    chunks = (x.split(CHUNK, -2) for x in (query, key, value, forget))
    for q, k, v, f in zip(*chunks, strict=True):
        output, state = _chunk(q, k, v, f, state)
        outputs.append(output)
    return torch.cat(outputs, -2), state


def _chunk(q: Tensor, k: Tensor, v: Tensor, f: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    num_steps = q.shape[-2]
    missing = (1 << (num_steps - 1).bit_length()) - num_steps
    if missing:  # steps that keep everything and add nothing
        q, k, v = (functional.pad(x, (0, 0, 0, missing)) for x in (q, k, v))
        f = functional.pad(f, (0, 0, 0, missing), value=1.0)
    scores = (q * k).sum(-1)[..., None, None]  # of each step with itself, (…, C, 1, 1)
    q, kept = q * f, f
    size = 1
    while size < q.shape[-2]:
        (q0, q1), (k0, k1), (kept0, kept1) = _halves(q, size), _halves(k, size), _halves(kept, 1)
        scores0, scores1 = scores.unflatten(-3, (-1, 2)).unbind(-3)
        upper = torch.cat([scores0, torch.zeros_like(scores0)], -1)
        scores = torch.cat([upper, torch.cat([q1 @ k0.mT, scores1], -1)], -2)
        q, k = _joined(q0, q1 * kept0), _joined(k0 * kept1, k1)
        kept = (kept0 * kept1).squeeze(-2)
        size *= 2
    output = scores.squeeze(-3) @ v + q @ state
    return output[..., :num_steps, :], kept.mT * state + k.mT @ v


def _halves(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """The first and the second half of every ``2 * size`` steps."""
    return x.unflatten(-2, (-1, 2, size)).unbind(-3)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """What :func:`_halves` took apart."""
    return torch.stack([first, second], -3).flatten(-4, -2)
