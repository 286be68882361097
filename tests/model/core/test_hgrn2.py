"""HGRN2 against the paper's formula, step by step."""

import pytest
import torch
from small import NO_DROPOUT, exact_in_bfloat16, normal
from torch import Tensor
from torch.testing import assert_close

from lmbench.model.core.hgrn2 import CHUNK, HGRN2, gated_attention

B, N, H = 2, 2, 6


def step_by_step(q: Tensor, k: Tensor, v: Tensor, f: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    outputs = []
    for t in range(q.shape[-2]):
        state = torch.diag_embed(f[..., t, :]) @ state
        state = state + torch.einsum("...k,...v->...kv", k[..., t, :], v[..., t, :])
        outputs.append(torch.einsum("...k,...kv->...v", q[..., t, :], state))
    return torch.stack(outputs, -2), state


@pytest.mark.parametrize("num_steps", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_chunks_are_exact_for_any_forget_gate(num_steps: int) -> None:
    q, k, v = normal(B, N, num_steps, 3), normal(B, N, num_steps, 3), normal(B, N, num_steps, 4)
    forget = torch.rand(B, N, num_steps, 3, dtype=torch.float64)
    forget[..., ::5, :2] = 0.0
    forget[..., 1::5, 1:] = 1.0
    leaves = [x.requires_grad_() for x in (q, k, v, forget, normal(B, N, 3, 4))]
    found, expected = gated_attention(*leaves), step_by_step(*leaves)
    assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = [torch.randn_like(x) for x in expected]
    gradients = torch.autograd.grad(found, leaves, weights)
    assert_close(gradients, torch.autograd.grad(expected, leaves, weights), rtol=1e-9, atol=1e-9)


def test_float32_stays_accurate_for_20_000_steps() -> None:
    num_steps = 20_000
    q, v, forget = (normal(1, num_steps, 2) for _ in range(3))
    forget = (40.0 * forget).sigmoid()
    inputs = q, 1.0 - forget, v, forget, normal(1, 2, 2)
    rounded = gated_attention(*(x.float() for x in inputs))
    exact = gated_attention(*inputs)
    assert_close([x.double() for x in rounded], list(exact), rtol=1e-3, atol=1e-4)


def test_float32_keeps_all_or_nothing() -> None:
    q, k, v = (torch.randn(1, 2 * CHUNK + 7, 2) for _ in range(3))
    state = torch.randn(1, 2, 2)
    output, last = gated_attention(q, k, v, torch.zeros_like(k), state)
    assert_close(output, (q * k).sum(-1, keepdim=True) * v)  # each step sees only itself
    assert_close(last, k[:, -1:].mT * v[:, -1:])
    output, last = gated_attention(q, torch.zeros_like(k), v, torch.ones_like(k), state)
    assert_close(output, q @ state)
    assert_close(last, state)


def by_hand(core: HGRN2, input: Tensor) -> tuple[Tensor, list[Tensor]]:
    def normed(x: Tensor, module: torch.nn.RMSNorm) -> Tensor:
        return module.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], N, H // N).permute(1, 2, 0, 3)

    shares = core.lower_bounds.exp() / core.lower_bounds.exp().sum(0)
    x, states = input @ core.expand.weight.T, []
    for index, block in enumerate(core.blocks):
        bound = shares[1 : index + 1].sum(0)
        q, f, v = (normed(x, block.norm) @ block.layer.gates.weight.T).split(H, -1)
        q, f = q * q.sigmoid(), bound + (1 - bound) * f.sigmoid()
        start = torch.zeros(B, N, H // N, H // N, dtype=torch.float64)
        output, state = step_by_step(heads(q), heads(1 - f), heads(v), heads(f), start)
        output = output.permute(2, 0, 1, 3).reshape(x.shape)
        x = x + normed(output, block.layer.norm) @ block.layer.out.weight.T
        gate, value = (
            normed(x, block.feedforward_norm) @ block.feedforward.gates.weight.T
        ).tensor_split(2, -1)
        x = x + (gate * gate.sigmoid() * value) @ block.feedforward.out.weight.T
        states.append(state)
    return normed(x, core.last_norm) @ core.project.weight.T, states


def test_a_core_matches_the_paper() -> None:
    core = HGRN2(5, H, 4, num_layers=3, num_heads=N, **NO_DROPOUT).double()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.normal_()
    input = normal(2 * CHUNK + 3, B, 5)
    found, (expected, states) = core(input), by_hand(core, input)
    assert_close(found.raw_output, expected)
    assert_close(found.state, tuple((state,) for state in states))
    parameters = list(core.parameters())
    assert_close(
        torch.autograd.grad(found.raw_output.sin().sum(), parameters),
        torch.autograd.grad(expected.sin().sum(), parameters),
    )


def test_the_recurrence_is_exact_in_autocast_and_its_projection_drops_weights() -> None:
    core, dropped = HGRN2(H, H, num_layers=2, num_heads=N, **NO_DROPOUT), []
    layer, bound = core.blocks[0].layer, torch.rand(H)
    input = exact_in_bfloat16(layer.gates.weight, 9, B, H)

    def record(weight: Tensor) -> Tensor:
        dropped.append(weight)
        return weight

    _, expected = layer(input, None, record, bound)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = layer(input, None, record, bound)
    assert_close(state, expected, rtol=1e-5, atol=1e-6)
    assert all(weight is layer.gates.weight for weight in dropped)
    assert len(dropped) == 2


@pytest.mark.parametrize("num_heads", [0, 4])
def test_heads_must_divide_the_width(num_heads: int) -> None:
    with pytest.raises(ValueError, match=r"^num_heads"):
        HGRN2(H, H, num_heads=num_heads, **NO_DROPOUT)
