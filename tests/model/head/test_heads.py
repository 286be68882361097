"""How much memory all heads need, and in what precision they compute."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lmbench.loss import linear_cross_entropy
from lmbench.model.head import (
    AdaptiveSoftmax,
    MixtureOfSoftmaxes,
    Softmax,
    adaptive_softmax,
    mixture_of_softmaxes,
    softmax,
)

N, H, V = 200, 5, 64
CHUNK = 32  # tokens whose logits are held at a time
HEADS = {
    softmax: Softmax,
    adaptive_softmax: partial(AdaptiveSoftmax, cutoffs=[20, 40]),
    mixture_of_softmaxes: partial(MixtureOfSoftmaxes, num_components=2, latent_dropout=0.0),
}

every_head = pytest.mark.parametrize("module", list(HEADS), ids=lambda module: module.__name__)
tied_or_not = pytest.mark.parametrize("tied", [True, False])


def make(module: Any, tied: bool, **arguments: bool) -> tuple[Any, Tensor, Tensor]:
    torch.manual_seed(0)
    head = HEADS[module](H, V, **arguments)
    if tied:
        head.tie(nn.Parameter(torch.empty(V, H)))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head, torch.randn(N, H), torch.randint(V, (N,))


class BiggestTensor(TorchDispatchMode):
    """Records the number of elements of the biggest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@tied_or_not
@every_head
def test_never_holds_all_logits(module, tied: bool, reduction: str, monkeypatch) -> None:
    monkeypatch.setattr(linear_cross_entropy, "CHUNK_BYTES", CHUNK * V * 4)
    head, output, targets = make(module, tied)
    with BiggestTensor() as usual:
        functional.cross_entropy(functional.linear(output, torch.rand(V, H)), targets)
    assert usual.numel == N * V
    with BiggestTensor() as biggest:
        head.loss(output, targets, reduction=reduction).sum().backward()
    # Per token: the adaptive softmax has the head's words and clusters, then the words of each
    # cluster; the mixture has the words twice.
    sizes = {softmax: [V], adaptive_softmax: [20 + 2, 20, 24], mixture_of_softmaxes: [2 * V]}
    assert biggest.numel == max(size * (CHUNK * V // size) for size in sizes[module])


@tied_or_not
@every_head
def test_autocast_rounds_the_training_loss_unless_told_otherwise(module, tied, monkeypatch) -> None:
    monkeypatch.setattr(linear_cross_entropy, "multiplies_bfloat16", lambda: True)
    head, output, targets = make(module, tied)
    in_float32, *_ = make(module, tied, autocast=False)
    exact = make(module, tied)[0].double()
    expected = exact.loss(output.double(), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.loss(output, targets)
        assert_close(in_float32.loss(output, targets).double(), expected)
        with torch.no_grad():
            assert_close(head.loss(output, targets).double(), expected)
    assert_close(head.loss(output, targets).double(), expected)
    assert loss.dtype == torch.float32
    assert 1e-6 < abs(loss.item() / expected.item() - 1) < 2**-8  # half a unit of bfloat16: 2^-9
    loss.backward()
    expected.backward()
    for ours, theirs in zip(head.parameters(), exact.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32
        assert 0 < (ours.grad - theirs.grad).norm() / theirs.grad.norm() < 2**-6
