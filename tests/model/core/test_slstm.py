"""sLSTM against its formula, step by step and with nothing divided out."""

import pytest
import torch
from small import NO_DROPOUT, normal
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from lmbench.model.core import SLSTM
from lmbench.model.core.slstm import SLSTMLayer

T, B, SIZE, N = 9, 3, 12, 3
D = SIZE // N


def random_layer() -> SLSTMLayer:
    layer = SLSTMLayer(SIZE, N).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(normal(*parameter.shape) / 2)
    return layer


def layer_by_hand(layer: SLSTMLayer, input: Tensor, recurrent: Tensor) -> Tensor:
    """Beck et al. 2024, section 2.2 and appendix A.4."""
    padded = functional.pad(input.permute(1, 2, 0), (3, 0))  # (B, H, 3 + T)
    kernel = layer.conv.weight.t().unsqueeze(1)
    convolved = functional.conv1d(padded, kernel, layer.conv.bias, groups=SIZE).permute(2, 0, 1)
    convolved = convolved * convolved.sigmoid()

    def matrices(weight: Tensor) -> list[Tensor]:
        """One for each gate, with the heads' blocks on the diagonal and zeros elsewhere."""
        gates = weight.unflatten(1, (-1, D)).unbind(1)
        return [torch.block_diag(*gate) for gate in gates]

    inputs = [convolved @ m.t() for m in matrices(layer.gates_of_conv)]
    inputs += [input @ m.t() for m in matrices(layer.gates_of_input)]
    biases = layer.bias.unflatten(1, (4, D)).unbind(1)
    hidden = cell = normalizer = normal(B, SIZE) * 0
    outputs = []
    for t in range(T):
        i, f, z, o = (
            x[t] + hidden @ m.t() + bias.flatten()
            for x, m, bias in zip(inputs, matrices(recurrent), biases, strict=True)
        )
        cell = f.sigmoid() * cell + i.exp() * z.tanh()
        normalizer = f.sigmoid() * normalizer + i.exp()
        hidden = o.sigmoid() * cell / normalizer
        outputs.append(hidden.unflatten(-1, (N, D)))
    heads = torch.stack(outputs)
    heads = heads - heads.mean(-1, keepdim=True)
    heads = heads / (heads.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return heads.flatten(-2) * layer.norm


@pytest.mark.parametrize("window", [T, 4, 1])
def test_outputs_and_gradients_match_the_formula_however_the_text_is_cut(window: int) -> None:
    layer, input = random_layer(), normal(T, B, SIZE).requires_grad_()
    expected = layer_by_hand(layer, input, layer.recurrent)
    outputs, state = [], None
    for part in input.split(window):
        output, state = layer(part, state, lambda weight: weight)
        outputs.append(output)
    output = torch.cat(outputs)
    assert_close(output, expected, rtol=1e-9, atol=1e-10)
    leaves, factors = [input, *layer.parameters()], normal(*output.shape)
    gradients = torch.autograd.grad((output * factors).sum(), leaves)
    expected_gradients = torch.autograd.grad((expected * factors).sum(), leaves)
    assert_close(gradients, expected_gradients, rtol=1e-8, atol=1e-9)


def test_weight_dropout_acts_on_the_recurrent_weight() -> None:
    layer, input = random_layer(), normal(T, B, SIZE)
    output, _ = layer(input, None, lambda weight: weight.triu())
    assert_close(output, layer_by_hand(layer, input, layer.recurrent.triu()))


@pytest.mark.parametrize("bias", [-150.0, 150.0])
@pytest.mark.parametrize("gate", [0, 1])
def test_float32_is_enough_for_gates_with_exponentials_beyond_it(gate: int, bias: float) -> None:
    layer, input = random_layer(), normal(T, B, SIZE)
    with torch.no_grad():
        layer.bias[:, gate * D : (gate + 1) * D] = bias
    results = []
    for dtype in (torch.float64, torch.float32):
        layer.zero_grad()
        output, state = layer.to(dtype)(input.to(dtype), None, lambda weight: weight)
        output.sum().backward()
        gradients = [parameter.grad.double() for parameter in layer.parameters()]
        results.append([tensor.double() for tensor in (output, *state, *gradients)])
    assert_close(*results, rtol=1e-3, atol=1e-4)


def test_higher_layers_start_with_longer_memories() -> None:
    core = SLSTM(8, 24, num_layers=3, num_heads=2, **NO_DROPOUT)
    forget = torch.stack([block.layer.bias.unflatten(1, (4, 12))[:, 1] for block in core.blocks])
    assert_close(forget[..., 0], torch.full((3, 2), 5.0))
    assert_close(forget[..., -1], torch.full((3, 2), -7.0))
    assert_close(forget[:, 0, 5], 5 - 12 * (5 / 11) ** torch.tensor([0.3, 0.95, 1.6]))
    for block in core.blocks:
        assert not block.layer.bias.unflatten(1, (4, 12))[:, [0, 2, 3]].any()
        assert not block.layer.recurrent.any()
        assert isinstance(block.norm, torch.nn.LayerNorm)
        assert block.norm.bias is None
        for weight in (block.layer.gates_of_conv, block.layer.gates_of_input):
            assert weight.std().item() == pytest.approx((0.4 / 24) ** 0.5, rel=0.2)


def test_feedforward_matches_the_formula() -> None:
    core, input = SLSTM(8, 6, num_heads=2, **NO_DROPOUT).double(), normal(T, B, 6)
    feedforward = core.blocks[0].feedforward
    gate, inner = (input @ half.t() for half in feedforward.gates.weight.split(8))
    expected = inner * gate * (1 + torch.erf(gate / 2**0.5)) / 2 @ feedforward.out.weight.t()
    assert_close(feedforward(input), expected)


def test_heads_must_divide_the_features() -> None:
    with pytest.raises(ValueError, match=r"^num_heads"):
        SLSTM(8, 10, num_heads=4, **NO_DROPOUT)
