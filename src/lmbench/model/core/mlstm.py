"""mLSTM. Shape letters: T time steps, B columns, H hidden, I inner, N heads, D = I/N, G = B·N."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lmbench.model.core.residual import CausalConv, ResidualStack
from lmbench.model.core.stack import to_float32

CHUNK = 128
"""Maximum number of steps that are compared pair by pair."""


class MLSTM(ResidualStack):
    """Blocks of an LSTM whose memory is a matrix, which keys write to and queries read.

    Source: Beck et al. 2024 (arXiv 2405.04517), forget gates with a sigmoid, and the pre
    up-projection block: twice as wide inside, a convolution over four steps, and queries, keys and
    values made in blocks of four features. As in the package xlstm, the gates read queries, keys
    and values, the other linear layers have no biases, and all but the up- and down-projection have
    that package's initial values. There are no sLSTM blocks.

    Args:
        num_heads: Number of memories, N.
        options: Those of :class:`lmbench.model.core.stack.Stack`. Weight dropout is on the
            up-projection, which makes the cell's branch and the gate on its output.

    Raises:
        ValueError: As there, or if ``num_heads`` does not divide half of ``hidden_size``.
    """

    norm = partial(nn.LayerNorm, bias=False)

    def __init__(self, *sizes: int, num_heads: int = 4, **options: Any) -> None:
        self._num_heads = num_heads
        super().__init__(*sizes, **options)

    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """An :class:`MLSTMLayer`."""
        return MLSTMLayer(input_size, self._num_heads)


class MLSTMLayer(nn.Module):
    """Up-projection, convolution, cell, gate and down-projection.

    Its state is ``(x, C, n, m)``: three inputs of the convolution, ``(3, B, I)``; and, divided by
    the exponential of m, the memory, ``(B, N, D, D)``, and its normalizer, ``(B, N, D)``; m is
    ``(B, N)``.
    """

    def __init__(self, size: int, num_heads: int) -> None:
        inner_size = 2 * size
        if num_heads < 1 or inner_size % (4 * num_heads) != 0:
            raise ValueError(f"num_heads must divide half of hidden_size={size}, got {num_heads}")
        super().__init__()
        self.num_heads = num_heads
        self.up = nn.Linear(size, 2 * inner_size, bias=False)
        self.conv = CausalConv(inner_size)
        std = math.sqrt(0.4 / size)
        self.query, self.key, self.value = (
            nn.Parameter(torch.empty(inner_size // 4, 4, 4).normal_(std=std)) for _ in range(3)
        )
        self.gates = nn.Linear(3 * inner_size, 2 * num_heads)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias[:num_heads].normal_(std=0.1)  # input gates
            self.gates.bias[num_heads:].copy_(torch.linspace(3.0, 6.0, num_heads))  # forget gates
        self.norm = nn.Parameter(torch.ones(inner_size))
        self.skip = nn.Parameter(torch.ones(inner_size))
        self.down = nn.Linear(inner_size, size, bias=False)

    def forward(
        self,
        input: Float[Tensor, "T B H"],
        state: Sequence[Tensor] | None,
        weight_dropout: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, "T B H"], tuple[Tensor, ...]]:
        """Runs a window, from ``state`` or from zeros."""
        last, *memory = (None,) if state is None else state
        branches = weight_dropout(self.up.weight).chunk(2)
        inner, gate = (functional.linear(input, weight) for weight in branches)
        with torch.autocast(input.device.type, enabled=False):
            inner = to_float32(inner)
            convolved, last = self.conv(inner, last)
            convolved = to_float32(functional.silu(convolved))
            hidden, memory = self.cell(convolved, inner, [to_float32(tensor) for tensor in memory])
            hidden = torch.addcmul(self.skip * convolved, hidden, self.norm)
        output = hidden * functional.silu(gate)
        return self.down(output.to(self.down.weight.dtype)), (last, *memory)

    def cell(
        self,
        convolved: Float[Tensor, "T B I"],
        inner: Float[Tensor, "T B I"],
        memory: Sequence[Tensor],
    ) -> tuple[Float[Tensor, "T B I"], tuple[Tensor, ...]]:
        """What is read from the memories, each with mean 0 and variance 1, and their new state."""
        query = multiply_blocks(convolved, to_float32(self.query))
        key = multiply_blocks(convolved, to_float32(self.key))
        value = multiply_blocks(inner, to_float32(self.value))
        read = torch.cat([query, key, value], -1)
        gates = functional.linear(read, to_float32(self.gates.weight), to_float32(self.gates.bias))

        num_steps, num_columns, inner_size = inner.shape
        heads = (num_columns, self.num_heads)
        by_head = [
            tensor.reshape(num_steps, math.prod(heads), -1).transpose(0, 1)
            for tensor in (query, key, value, *gates.chunk(2, -1))
        ]
        size = inner_size // self.num_heads
        if memory:
            memory = [tensor.flatten(0, 1) for tensor in memory]
        else:
            shapes = (size, size), (size,), ()
            memory = [inner.new_zeros(math.prod(heads), *shape) for shape in shapes]
        outputs = []
        num_chunks = -(-num_steps // CHUNK)
        for parts in zip(*(tensor.chunk(num_chunks, 1) for tensor in by_head), strict=True):
            q, k, v, i, f = (part.contiguous() for part in parts)
            output, *memory = read_memory(q, k, v, i.squeeze(-1), f.squeeze(-1), *memory)
            outputs.append(functional.layer_norm(output, (size,)).transpose(0, 1))
        memory = tuple(tensor.unflatten(0, heads) for tensor in memory)
        return torch.cat(outputs).reshape(inner.shape), memory


def multiply_blocks(input: Float[Tensor, "*N I"], weight: Float[Tensor, "K 4 4"]) -> Tensor:
    """A product with a matrix that has blocks on its diagonal and zeros elsewhere.

    Up to eight blocks, with the zeros between them, are multiplied as one, which is faster.
    """
    num_together = math.gcd(len(weight), 8)
    groups = weight.mT.unflatten(0, (-1, num_together))
    groups = torch.einsum("grio,rs->griso", groups, weight.new_ones(num_together).diag())
    groups = groups.flatten(3).flatten(1, 2)
    read = input.unflatten(-1, (len(groups), -1)).flatten(0, -3).transpose(0, 1)
    return (read @ groups).transpose(0, 1).reshape(input.shape)


def read_memory(
    query: Float[Tensor, "G T D"],
    key: Float[Tensor, "G T D"],
    value: Float[Tensor, "G T D"],
    input_gate: Float[Tensor, "G T"],
    forget_gate: Float[Tensor, "G T"],
    memory: Float[Tensor, "G D D"],
    normalizer: Float[Tensor, "G D"],
    stabilizer: Float[Tensor, " G"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What each step reads, and memory, normalizer and stabilizer after the last one.

    With i the exponential of the input gate and f the sigmoid of the forget gate, a step is
    C ← f·C + i·k·vᵀ, n ← f·n + i·k, and reads Cᵀq / max(|nᵀq|, √D). (The paper divides keys by √D;
    its maximum is over 1.) Here all steps are taken at once: step t reads from step j its value
    times qₜ·kⱼ times a weight, i at step j times all f after it up to t. Each step's weights are
    divided by the largest of them, which cancels out, so that none is too large for a float. The
    denominator, divided in this way, is kept at √D/10⁶ or more, lest it be a rounding error; the
    package xlstm adds as much.
    """
    decay = functional.logsigmoid(forget_gate).cumsum(-1)
    source = input_gate - decay  # log-weight of step j at step t, without decay at t
    top = torch.maximum(source.detach().cummax(-1).values, stabilizer.detach().unsqueeze(-1))
    num_steps = source.shape[-1]
    future = torch.ones(num_steps, num_steps, dtype=torch.bool, device=source.device).triu(1)
    weights = source.unsqueeze(-2) - top.unsqueeze(-1)
    weights = weights.masked_fill(future, -math.inf).exp()  # (G, T, T)
    kept = (stabilizer.unsqueeze(-1) - top).exp()

    scores = query @ key.mT * weights
    numerator = scores @ value + query @ memory * kept.unsqueeze(-1)
    product = scores.sum(-1) + (query @ normalizer.unsqueeze(-1)).squeeze(-1) * kept
    # The 1 of the paper's maximum, divided as the rest is: exp(-m) with the stabilizer m.
    one = (decay + top).neg().clamp(math.log(1e-6), 80.0).exp()
    denominator = torch.maximum(product.abs(), one * math.sqrt(query.shape[-1]))

    written = key * weights[:, -1].unsqueeze(-1)
    memory = (written.mT @ value).addcmul_(memory, kept[:, -1, None, None])
    normalizer = written.sum(1) + normalizer * kept[:, -1:]
    return numerator / denominator.unsqueeze(-1), memory, normalizer, (decay + top)[:, -1]
