"""Cores against the code that their authors, or those they point to, have published.

``make extras`` installs these packages. Of two of them only single files are loaded: the packages
need more than PyTorch to be imported.
"""

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small import NO_DROPOUT
from torch import Tensor, nn
from torch.testing import assert_close

from lmbench.model.core import MinGRU, MinLSTM
from lmbench.model.core.gated_delta_net import gated_delta_rule
from lmbench.model.core.hgrn2 import gated_attention
from lmbench.model.core.mlstm import read_memory
from lmbench.model.core.slstm import SLSTMLayer

T, B, N, D = 150, 2, 3, 4  # longer than a chunk of any core


def published(package: str, path: str) -> ModuleType:
    """A file of an installed package, by itself."""
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{package} is not installed: `make extras` installs it.")
    file = Path(spec.submodule_search_locations[0]) / path
    of_file: Any = spec_from_file_location(f"published_{package}", file)
    module = module_from_spec(of_file)
    of_file.loader.exec_module(module)
    return module


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def assert_alike(ours: Tensor, theirs: Tensor, leaves: list[Tensor], tolerance: float) -> None:
    """Values and gradients."""
    assert ours.shape == theirs.shape
    factors = torch.randn_like(ours)
    for a, b in zip(
        [ours, *torch.autograd.grad((ours * factors).sum(), leaves, retain_graph=True)],
        [theirs, *torch.autograd.grad((theirs.double() * factors).sum(), leaves)],
        strict=True,
    ):
        assert_close(a, b.double(), rtol=tolerance, atol=tolerance * float(a.detach().abs().max()))


@pytest.mark.parametrize(("core", "name"), [(MinGRU, "minGRU"), (MinLSTM, "minLSTM")])
def test_min_gru_and_min_lstm(core: Any, name: str) -> None:
    layer = core(8, 8, num_layers=1, **NO_DROPOUT).double().blocks[0].layer
    for parameter in (layer.conv.weight, layer.conv.bias, layer.gates.bias):
        nn.init.zeros_(parameter)  # what the package's layer does not have
    theirs = getattr(published("minGRU_pytorch", f"{name}.py"), name)(8, expansion_factor=1.5)
    theirs = theirs.double()
    candidate_first = layer.gates.weight.chunk(3 if name == "minLSTM" else 2)
    candidate_first = torch.cat([candidate_first[-1], *candidate_first[:-1]])
    into, out = theirs.state_dict()
    theirs.load_state_dict({into: candidate_first, out: layer.out.weight})
    input = normal(T, B, 8)
    ours, _ = layer(input, None, nn.Identity())
    assert_alike(ours, theirs(input.transpose(0, 1)).transpose(0, 1), [input], 1e-9)


def test_mlstm() -> None:
    package = published("xlstm", "blocks/mlstm/backends.py")
    leaves = [normal(B * N, T, D) for _ in range(3)] + [normal(B * N, T) for _ in range(2)]
    start = [torch.zeros(B * N, *shape, dtype=torch.float64) for shape in ((D, D), (D,), ())]
    ours, *_ = read_memory(*leaves, *start)
    heads = [leaf.unflatten(0, (B, N)) for leaf in leaves]
    *of_heads, i, f = heads
    gates = i.unsqueeze(-1), f.unsqueeze(-1)
    theirs = package.parallel_stabilized_simple(*of_heads, *gates, eps=0.0)
    assert_alike(ours, theirs.flatten(0, 1), leaves, 1e-9)


def test_slstm() -> None:
    package = published("xlstm", "blocks/slstm/src/vanilla/slstm.py")
    layer = SLSTMLayer(N * D, 1).double()
    gates, weight = normal(1, T, B, 4 * N * D), normal(1, 4 * N * D, N * D)
    ours, _ = layer.cell(gates, (), 0.1 * weight)
    states, outputs = torch.zeros(4, B, N * D, dtype=torch.float64), []
    for step in gates[0]:
        recurrent = states[0] @ (0.1 * weight[0].T)
        zeros = torch.zeros(1, 4 * N * D, dtype=torch.float64)
        states, _ = package.slstm_forward_pointwise(step, recurrent, zeros, states, {})
        outputs.append(states[0])
    assert_alike(ours[:, 0], torch.stack(outputs), [gates, weight], 1e-9)


def test_hgrn2() -> None:
    package = published("fla", "ops/gla/naive.py")
    leaves = [normal(B, N, T, D) for _ in range(4)]
    query, key, value, forget = leaves
    state = torch.randn(B, N, D, D, dtype=torch.float64)
    forget = forget.sigmoid()
    ours, last = gated_attention(query, key, value, forget, state)
    by_step = (x.transpose(1, 2) for x in (query * D**0.5, key, value, forget.log()))
    theirs, theirs_last = package.naive_recurrent_gla(*by_step, state, output_final_state=True)
    assert_alike(ours, theirs.transpose(1, 2), leaves, 1e-4)  # they compute in float32
    assert_close(last, theirs_last.double(), rtol=1e-4, atol=1e-4)


def test_gated_delta_net() -> None:
    package = published("fla", "ops/gated_delta_rule/naive.py")
    leaves = [normal(B, N, T, D) for _ in range(3)] + [normal(B, N, T) for _ in range(2)]
    query, key, value, strength, decay = leaves
    key, strength = nn.functional.normalize(key, dim=-1), strength.sigmoid()
    decay = nn.functional.logsigmoid(decay)
    state = torch.randn(B, N, D, D, dtype=torch.float64)
    ours, last = gated_delta_rule(query, key, value, strength, decay, state)
    by_step = (x.transpose(1, 2) for x in (query, key, value, strength, decay))
    theirs, theirs_last = package.naive_recurrent_gated_delta_rule(
        *by_step, scale=1.0, initial_state=state, output_final_state=True
    )
    assert_alike(ours, theirs.transpose(1, 2), leaves, 1e-4)  # they compute in float32
    assert_close(last, theirs_last.double(), rtol=1e-4, atol=1e-4)
