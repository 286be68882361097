"""Every core's layer against its formula, one step at a time, as training runs it.

The weights change between two windows, and gradients end where the second one begins. What the
first one left in the state was therefore made with the old weights, for good.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from small import SIZE, makers, normal
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

B, N = 3, 2
Step = tuple[Tensor, tuple[Any, ...]]
"""The output of a step, and what the next one reads."""


def lstm(layer: Any, x: Tensor, state: Sequence[Tensor] | None) -> Step:
    """Hochreiter and Schmidhuber's, with forget gates; the gates come as i, f, g, o."""
    h, c = state or (x.new_zeros(B, layer.hidden_size), x.new_zeros(B, layer.hidden_size))
    gates = x @ layer.weight_ih_l0.T + layer.bias_ih_l0 + h @ layer.weight_hh_l0.T
    i, f, g, o = (gates + layer.bias_hh_l0).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return h, (h, c)


def mogrifier_lstm(layer: Any, x: Tensor, state: Sequence[Tensor] | None) -> Step:
    """Melis et al. 2020, equations 1 to 3."""
    h, c = state or (x.new_zeros(B, layer.hidden_size), x.new_zeros(B, layer.hidden_size))
    for k, gate in enumerate(layer.rounds):
        if k % 2 == 0:
            x = 2 * gate(h).sigmoid() * x
        else:
            h = 2 * gate(x).sigmoid() * h
    return lstm(layer, x, (h, c))


def gru(layer: Any, x: Tensor, state: Sequence[Tensor] | None) -> Step:
    """Cho et al. 2014; the reset gate acts on the product, bias included."""
    (h,) = state or (x.new_zeros(B, layer.hidden_size),)
    read = (x @ layer.weight_ih_l0.T + layer.bias_ih_l0).chunk(3, -1)
    kept = (h @ layer.weight_hh_l0.T + layer.bias_hh_l0).chunk(3, -1)
    reset, update = (read[0] + kept[0]).sigmoid(), (read[1] + kept[1]).sigmoid()
    h = (1 - update) * (read[2] + reset * kept[2]).tanh() + update * h
    return h, (h,)


def qrnn(layer: Any, x: Tensor, state: Sequence[Tensor] | None) -> Step:
    """Bradbury et al. 2016, equation 1 and section 2.1 (fo-pooling)."""
    c, last = state or (x.new_zeros(B, layer.hidden_size), torch.zeros_like(x))
    now, before = layer.conv.weight.split(x.shape[-1], -1)
    candidate, f, o = (x @ now.T + last @ before.T + layer.conv.bias).chunk(3, -1)
    c = f.sigmoid() * c + (1 - f.sigmoid()) * candidate.tanh()
    return o.sigmoid() * c, (c, x)


def ind_rnn(layer: Any, x: Tensor, state: Sequence[Tensor] | None) -> Step:
    """Li et al. 2018, equation 4, with tanh."""
    (h,) = state or (x.new_zeros(B, len(layer.recurrent)),)
    h = (x @ layer.input.weight.T + layer.input.bias + layer.recurrent * h).tanh()
    return h, (h,)


def conv(layer: Any, x: Tensor, last: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A kernel of four steps for each feature, and the three that the next one reads."""
    steps = (*last, x)
    output = sum(weight * step for weight, step in zip(layer.weight, steps, strict=True))
    return output + layer.bias, steps[1:]


def min_cell(layer: Any, x: Tensor, state: Sequence[Any] | None, *, is_lstm: bool) -> Step:
    """Feng et al. 2024, sections 3.1.3 and 3.2.4; g is that of appendix B.3."""
    last, h = state or ([torch.zeros_like(x)] * 3, x.new_zeros(B, layer.inner_size))
    convolved, last = conv(layer.conv, x, last)
    *gates, candidate = ((x + convolved) @ layer.gates.weight.T + layer.gates.bias).chunk(
        3 if is_lstm else 2, -1
    )
    candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
    if is_lstm:
        f, i = (gate.sigmoid() for gate in gates)
        h = (f * h + i * candidate) / (f + i)
    else:
        z = gates[0].sigmoid()
        h = (1 - z) * h + z * candidate
    return h @ layer.out.weight.T, (last, h)


def min_gru(layer: Any, x: Tensor, state: Sequence[Any] | None) -> Step:
    return min_cell(layer, x, state, is_lstm=False)


def min_lstm(layer: Any, x: Tensor, state: Sequence[Any] | None) -> Step:
    return min_cell(layer, x, state, is_lstm=True)


def standardized(x: Tensor) -> Tensor:
    """With mean 0 and variance 1."""
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def slstm(layer: Any, x: Tensor, state: Sequence[Any] | None) -> Step:
    """Beck et al. 2024, section 2.2 and appendix A.4."""
    zeros = torch.zeros_like(x)
    last, h, c, n = state or ([zeros] * 3, zeros, zeros, zeros)
    convolved, last = conv(layer.conv, x, last)

    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        """Each head's features with its own matrix, (B, N, gates · D)."""
        return torch.einsum("bnd,ngd->bng", x.unflatten(-1, (N, -1)), weight)

    read = torch.cat(
        [
            multiply(functional.silu(convolved), layer.gates_of_conv),
            multiply(x, layer.gates_of_input),
        ],
        -1,
    )
    i, f, z, o = (
        gate.flatten(1) for gate in (read + multiply(h, layer.recurrent) + layer.bias).chunk(4, -1)
    )
    c = f.sigmoid() * c + i.exp() * z.tanh()
    n = f.sigmoid() * n + i.exp()
    h = o.sigmoid() * c / n
    return standardized(h.unflatten(-1, (N, -1))).flatten(1) * layer.norm, (last, h, c, n)


def mlstm(layer: Any, x: Tensor, state: Sequence[Any] | None) -> Step:
    """Beck et al. 2024, section 2.3 and appendix A.4."""
    size = 2 * x.shape[-1]
    last, memory, n = state or (
        [x.new_zeros(B, size)] * 3,
        x.new_zeros(B, N, size // N, size // N),
        x.new_zeros(B, N, size // N),
    )
    inner, gate = (x @ layer.up.weight.T).chunk(2, -1)
    convolved, last = conv(layer.conv, inner, last)
    convolved = functional.silu(convolved)
    q, k = (convolved @ torch.block_diag(*weight).T for weight in (layer.query, layer.key))
    v = inner @ torch.block_diag(*layer.value).T
    i, f = (torch.cat([q, k, v], -1) @ layer.gates.weight.T + layer.gates.bias).chunk(2, -1)
    i, f = i.exp().unsqueeze(-1), f.sigmoid().unsqueeze(-1)
    q, k, v = (x.unflatten(-1, (N, -1)) for x in (q, k, v))
    k = k / k.shape[-1] ** 0.5
    memory = f.unsqueeze(-1) * memory + i.unsqueeze(-1) * torch.einsum("bnv,bnk->bnvk", v, k)
    n = f * n + i * k
    h = torch.einsum("bnvk,bnk->bnv", memory, q)
    h = h / (n * q).sum(-1, keepdim=True).abs().clamp(min=1.0)
    h = standardized(h).flatten(1) * layer.norm + layer.skip * convolved
    return (h * functional.silu(gate)) @ layer.down.weight.T, (last, memory, n)


def hgrn2(layer: Any, x: Tensor, state: Sequence[Tensor] | None, lower_bound: Tensor) -> Step:
    """Qin et al. 2024, equation 8 and section 3.3: the outer product is of values and 1 - f."""
    size = x.shape[-1] // N
    (memory,) = state or (x.new_zeros(B, N, size, size),)
    q, f, v = (x @ layer.gates.weight.T).chunk(3, -1)
    f = lower_bound + (1 - lower_bound) * f.sigmoid()
    q, f, v = (x.unflatten(-1, (N, -1)) for x in (functional.silu(q), f, v))
    memory = f.unsqueeze(-1) * memory + torch.einsum("bnk,bnv->bnkv", 1 - f, v)
    output = torch.einsum("bnk,bnkv->bnv", q, memory).flatten(1)
    return layer.norm(output) @ layer.out.weight.T, (memory,)


def gated_delta_net(layer: Any, x: Tensor, state: Sequence[Any] | None) -> Step:
    """Yang et al. 2024, equation 10, with S transposed."""
    num_keys, num_values = layer.sizes
    num_mixed = 2 * num_keys + num_values
    last, memory = state or (
        [x.new_zeros(B, num_mixed)] * 3,
        x.new_zeros(B, N, num_keys // N, num_values // N),
    )
    mixed, gate, step, beta = (x @ layer.gates.weight.T).split([num_mixed, num_values, N, N], -1)
    mixed, last = conv(layer.conv, mixed, last)
    parts = functional.silu(mixed).split([num_keys, num_keys, num_values], -1)
    q, k, v = (part.unflatten(-1, (N, -1)) for part in parts)
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    alpha = (-layer.rate_log.exp() * (1 + (step + layer.step_bias).exp()).log()).exp()
    memory = alpha[..., None, None] * memory
    held = torch.einsum("bnk,bnkv->bnv", k, memory)
    change = beta.sigmoid().unsqueeze(-1) * (v - held)
    memory = memory + torch.einsum("bnk,bnv->bnkv", k, change)
    output = layer.norm(torch.einsum("bnk,bnkv->bnv", q, memory)).flatten(1)
    return (output * functional.silu(gate)) @ layer.out.weight.T, (last, memory)


FORMULAS: dict[str, Callable[..., Step]] = {
    "awd_lstm": lstm,
    "gated_delta_net": gated_delta_net,
    "gru": gru,
    "hgrn2": hgrn2,
    "ind_rnn": ind_rnn,
    "lstm": lstm,
    "min_gru": min_gru,
    "min_lstm": min_lstm,
    "mlstm": mlstm,
    "mogrifier_lstm": mogrifier_lstm,
    "qrnn": qrnn,
    "slstm": slstm,
}
"""By the name in ``conf/model/core``. A new core's formula goes here."""


def detached(state: Any) -> Any:
    return state.detach() if isinstance(state, Tensor) else tuple(map(detached, state))


@pytest.mark.parametrize("name", makers("core"))
def test_two_windows_match_the_formula_and_gradients_end_between_them(name: str) -> None:
    make: Any = makers("core")[name]
    core = make(**{"num_heads": N} if "num_heads" in make.keywords else {}).double()
    layer = core.blocks[1].layer if hasattr(core, "blocks") else core.layers[0]
    arguments = {}
    if name == "hgrn2":
        arguments["lower_bound"] = torch.rand(SIZE, dtype=torch.float64).requires_grad_()

    state = expected_state = None
    for num_steps in (5, 4):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(normal(*parameter.shape) / 2)
        input = normal(num_steps, B, SIZE).requires_grad_()
        output, state = layer(input, state, lambda weight: weight, **arguments)
        expected = []
        for x in input:
            step, expected_state = FORMULAS[name](layer, x, expected_state, **arguments)
            expected.append(step)
        expected = torch.stack(expected)
        assert_close(output, expected, rtol=1e-9, atol=1e-10)
        leaves, factors = [input, *layer.parameters(), *arguments.values()], normal(*output.shape)
        gradients = torch.autograd.grad((output * factors).sum(), leaves)
        expected_gradients = torch.autograd.grad((expected * factors).sum(), leaves)
        assert_close(gradients, expected_gradients, rtol=1e-8, atol=1e-9)
        state, expected_state = detached(state), detached(expected_state)
