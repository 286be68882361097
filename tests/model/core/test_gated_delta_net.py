"""Gated DeltaNet against the paper's formula, step by step."""

import pytest
import torch
from small import NO_DROPOUT, exact_in_bfloat16, normal
from torch import Tensor
from torch.testing import assert_close

from lmbench.model.core.gated_delta_net import CHUNK, GatedDeltaNet, gated_delta_rule

B, N, H = 2, 2, 8
K, V = 3, 6  # features of a key and of a value in each head


def step_by_step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, alpha: Tensor, state: Tensor
) -> tuple[Tensor, ...]:
    """The paper's S_t = S_(t−1) α_t (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ, which is ours transposed."""
    state, outputs = state.mT, []
    for t in range(q.shape[-2]):
        key, value = k[..., t, :, None], v[..., t, :, None]
        a, b = alpha[..., t, None, None], beta[..., t, None, None]
        identity = torch.eye(k.shape[-1], dtype=k.dtype)
        state = state @ (a * (identity - b * key @ key.mT)) + b * value @ key.mT
        outputs.append((state @ q[..., t, :, None]).squeeze(-1))
    return torch.stack(outputs, -2), state.mT


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("num_steps", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_chunks_are_exact_for_any_gates(num_steps: int) -> None:
    q, k, v = (
        normal(B, N, num_steps, K),
        unit(normal(B, N, num_steps, K)),
        normal(B, N, num_steps, V),
    )
    beta = torch.rand(B, N, num_steps, dtype=torch.float64)
    beta[..., ::5], beta[..., 1::5] = 0.0, 1.0
    log_decay = -torch.rand(B, N, num_steps, dtype=torch.float64)
    log_decay[..., ::7], log_decay[..., 3::7] = 0.0, -2000.0  # α is 1, or 0
    leaves = [x.requires_grad_() for x in (q, k, v, beta, log_decay, normal(B, N, K, V))]
    found = gated_delta_rule(*leaves)
    expected = step_by_step(q, k, v, beta, log_decay.exp(), leaves[-1])
    assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = [torch.randn_like(x) for x in expected]
    gradients = torch.autograd.grad(found, leaves, weights)
    assert_close(gradients, torch.autograd.grad(expected, leaves, weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_float32_stays_accurate_for_20_000_steps(scale: float) -> None:
    num_steps = 20_000
    q, k, v = unit(normal(1, num_steps, K)), unit(normal(1, num_steps, K)), normal(1, num_steps, V)
    beta, log_decay = (scale * normal(1, num_steps)).sigmoid(), -scale * normal(1, num_steps).exp()
    inputs = q, k, v, beta, log_decay, normal(1, K, V)
    rounded = gated_delta_rule(*(x.float() for x in inputs))
    exact = gated_delta_rule(*inputs)
    assert_close([x.double() for x in rounded], list(exact), rtol=1e-3, atol=1e-4)


def test_float32_keeps_all_or_nothing() -> None:
    num_steps = 2 * CHUNK + 7
    k = unit(torch.randn(1, 1, K)).expand(1, num_steps, K)
    q, v, state = torch.randn(1, num_steps, K), torch.randn(1, num_steps, V), torch.randn(1, K, V)
    one, zero = torch.ones(1, num_steps), torch.zeros(1, num_steps)
    output, last = gated_delta_rule(q, k, v, zero, zero, state)
    assert_close(output, q @ state)
    assert_close(last, state)
    output, last = gated_delta_rule(q, k, v, one, -1e30 * one, state)
    assert_close(output, (q * k).sum(-1, keepdim=True) * v)  # each step sees only itself
    output, last = gated_delta_rule(k, k, v, one, zero, state)
    assert_close(output, v, rtol=1e-4, atol=1e-4)  # what the same key held before is replaced


def by_hand(core: GatedDeltaNet, input: Tensor) -> tuple[Tensor, list[Tensor]]:
    def normed(x: Tensor, module: torch.nn.RMSNorm) -> Tensor:
        return module.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def silu(x: Tensor) -> Tensor:
        return x * x.sigmoid()

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], N, -1).permute(1, 2, 0, 3)

    x, states = input @ core.expand.weight.T, []
    for block in core.blocks:
        layer = block.layer
        made = normed(x, block.norm) @ layer.gates.weight.T
        mixed, gate, step, strength = made.split([N * (2 * K + V), N * V, N, N], -1)
        kernel = layer.conv.weight
        mixed = layer.conv.bias + sum(
            kernel[3 - lag] * torch.cat([torch.zeros_like(mixed[:lag]), mixed[: len(x) - lag]])
            for lag in range(4)
        )
        q, k, v = silu(mixed).split([N * K, N * K, N * V], -1)
        alpha = (-layer.rate_log.exp() * (1 + (step + layer.step_bias).exp()).log()).exp()
        output, state = step_by_step(
            unit(heads(q)),
            unit(heads(k)),
            heads(v),
            strength.sigmoid().permute(1, 2, 0),
            alpha.permute(1, 2, 0),
            torch.zeros(B, N, K, V, dtype=torch.float64),
        )
        output = normed(output, layer.norm).permute(2, 0, 1, 3).reshape(gate.shape) * silu(gate)
        x = x + output @ layer.out.weight.T
        gate, value = (
            normed(x, block.feedforward_norm) @ block.feedforward.gates.weight.T
        ).tensor_split(2, -1)
        x = x + (silu(gate) * value) @ block.feedforward.out.weight.T
        states.append(state)
    return normed(x, core.last_norm) @ core.project.weight.T, states


def test_a_core_matches_the_paper() -> None:
    core = GatedDeltaNet(5, H, 4, num_layers=2, num_heads=N, **NO_DROPOUT).double()
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if not name.endswith(("rate_log", "step_bias")):
                parameter.normal_()
    input = normal(CHUNK + 3, B, 5)
    found, (expected, states) = core(input), by_hand(core, input)
    assert_close(found.raw_output, expected)
    assert_close([matrix for _, matrix in found.state], states)
    parameters = list(core.parameters())
    assert_close(
        torch.autograd.grad(found.raw_output.sin().sum(), parameters),
        torch.autograd.grad(expected.sin().sum(), parameters),
    )


def test_initial_decays_are_those_of_the_authors() -> None:
    layer = GatedDeltaNet(64, 512, num_layers=1, num_heads=64, **NO_DROPOUT).blocks[0].layer
    rates, steps = layer.rate_log.exp(), torch.nn.functional.softplus(layer.step_bias)
    assert rates.min() >= 0.0
    assert rates.max() <= 16.0
    assert 6.0 < rates.mean() < 10.0
    assert steps.min() >= 0.000999
    assert steps.max() <= 0.1001
    assert 0.007 < steps.log().mean().exp() < 0.015  # 0.01


def test_the_recurrence_is_exact_in_autocast_and_its_projection_drops_weights() -> None:
    layer = GatedDeltaNet(H, H, num_layers=1, num_heads=N, **NO_DROPOUT).blocks[0].layer
    input, dropped = exact_in_bfloat16(layer.gates.weight, 9, B, H), []

    def record(weight: Tensor) -> Tensor:
        dropped.append(weight)
        return weight

    _, expected = layer(input, None, record)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = layer(input, None, record)
    assert_close(state, expected, rtol=1e-5, atol=1e-6)
    assert all(weight is layer.gates.weight for weight in dropped)
    assert len(dropped) == 2


@pytest.mark.parametrize("num_heads", [0, 4])
def test_heads_must_divide_the_keys(num_heads: int) -> None:
    with pytest.raises(ValueError, match=r"^num_heads"):
        GatedDeltaNet(H, H, num_heads=num_heads, **NO_DROPOUT)
