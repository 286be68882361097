"""mLSTM against its formula, step by step and with nothing divided out."""

import pytest
import torch
from small import NO_DROPOUT, exact_in_bfloat16, normal
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from lmbench.model.core import MLSTM, mlstm
from lmbench.model.core.mlstm import MLSTMLayer, read_memory

T, B, SIZE, N = 9, 3, 12, 3
INNER, D = 2 * SIZE, 2 * SIZE // N


def layer_by_hand(layer: MLSTMLayer, input: Tensor) -> tuple[Tensor, Tensor]:
    """Beck et al. 2024, section 2.3 and appendix A.4; also gives all |n·q|."""
    inner, gate = (input @ layer.up.weight.t()).split(INNER, -1)
    padded = functional.pad(inner.permute(1, 2, 0), (3, 0))  # (B, I, 3 + T)
    kernel = layer.conv.weight.t().unsqueeze(1)
    convolved = functional.conv1d(padded, kernel, layer.conv.bias, groups=INNER).permute(2, 0, 1)
    convolved = convolved * convolved.sigmoid()
    q = convolved @ torch.block_diag(*layer.query).t()
    k = convolved @ torch.block_diag(*layer.key).t()
    v = inner @ torch.block_diag(*layer.value).t()
    gates = torch.cat([q, k, v], -1) @ layer.gates.weight.t() + layer.gates.bias
    q, k, v = (x.unflatten(-1, (N, D)) for x in (q, k / D**0.5, v))
    memory, normalizer = normal(B, N, D, D) * 0, normal(B, N, D) * 0
    outputs, products = [], []
    for t in range(T):
        i, f = gates[t, :, :N, None].exp(), gates[t, :, N:, None].sigmoid()
        memory = f[..., None] * memory + i[..., None] * torch.einsum("bnv,bnk->bnvk", v[t], k[t])
        normalizer = f * normalizer + i * k[t]
        product = (normalizer * q[t]).sum(-1, keepdim=True).abs()
        outputs.append(torch.einsum("bnvk,bnk->bnv", memory, q[t]) / product.clamp(min=1.0))
        products.append(product)
    hidden = torch.stack(outputs)
    hidden = hidden - hidden.mean(-1, keepdim=True)
    hidden = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    hidden = hidden.flatten(-2) * layer.norm + layer.skip * convolved
    return hidden * gate * gate.sigmoid() @ layer.down.weight.t(), torch.stack(products)


@pytest.mark.parametrize("window", [T, 4, 1])
@pytest.mark.parametrize("chunk", [T, 4, 1])
def test_outputs_and_gradients_match_the_formula_however_the_text_is_cut(
    window: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlstm, "CHUNK", chunk)
    layer = MLSTMLayer(SIZE, N).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(normal(*parameter.shape) / 1.5)
    input = normal(T, B, SIZE).requires_grad_()
    expected, products = layer_by_hand(layer, input)
    assert 0.2 < (products > 1.0).double().mean() < 0.8  # both sides of the maximum

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


@pytest.mark.parametrize(("input_bias", "forget_bias"), [(0, 0), (150, 5), (-150, 5), (0, -150)])
def test_float32_is_enough_for_gates_with_exponentials_beyond_it(
    input_bias: float, forget_bias: float
) -> None:
    q, k, v = normal(3, 2, T, D)
    gates = [30 * normal(2, T) + input_bias, 30 * normal(2, T) + forget_bias]
    start = normal(2, D, D), normal(2, D), normal(2)
    results = []
    for dtype in (torch.float32, torch.float64):
        arguments = [tensor.to(dtype).requires_grad_() for tensor in (q, k, v, *gates, *start)]
        read, *state = read_memory(*arguments)
        gradients = torch.autograd.grad(read.sum(), arguments)
        results.append([tensor.double() for tensor in (read, *state, *gradients)])
    assert_close(*results, rtol=1e-3, atol=1e-4)


def test_the_memory_is_exact_in_autocast() -> None:
    layer = MLSTMLayer(SIZE, N)
    with torch.no_grad():
        for weight in (layer.query, layer.key, layer.value, layer.gates.weight):
            weight.normal_()
    input = exact_in_bfloat16(layer.up.weight, T, B, SIZE)
    _, expected = layer(input, None, lambda weight: weight)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = layer(input, None, lambda weight: weight)
    assert_close(state, expected, rtol=1e-4, atol=1e-5)


def test_weight_dropout_acts_on_the_up_projection() -> None:
    layer = MLSTMLayer(SIZE, N).double()
    output, _ = layer(normal(T, B, SIZE), None, torch.zeros_like)
    assert not output.any()  # nothing passes the gate


def test_initial_values() -> None:
    block = MLSTM(8, 64, num_layers=1, num_heads=4, **NO_DROPOUT).blocks[0]
    input_bias, forget_bias = block.layer.gates.bias.detach().chunk(2)
    assert_close(forget_bias, torch.tensor([3.0, 4.0, 5.0, 6.0]))
    assert input_bias.abs().max() < 0.6
    assert not block.layer.gates.weight.any()
    assert block.layer.query.std().item() == pytest.approx((0.4 / 64) ** 0.5, rel=0.2)
    assert isinstance(block.norm, torch.nn.LayerNorm)
    assert block.norm.bias is None


def test_heads_must_divide_the_features() -> None:
    with pytest.raises(ValueError, match=r"^num_heads"):
        MLSTM(8, 12, num_heads=4, **NO_DROPOUT)
