import sys

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lmbench.errors import UserError
from lmbench.model import Softmax


def test_initial_values() -> None:
    torch.manual_seed(0)
    head = Softmax(40, 500)
    assert head.weight.var().item() == pytest.approx(0.01 / 3, rel=0.03)
    assert head.weight.abs().max() <= 0.1
    assert not head.bias.any()
    assert dict(Softmax(40, 500, bias=False).named_parameters()).keys() == {"weight"}


def test_log_probs_keep_their_digits_under_autocast() -> None:
    torch.manual_seed(0)
    head = Softmax(8, 50)
    output = torch.randn(3, 2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head.log_probs(output)
        rounded = head.log_probs(output.bfloat16())
    assert_close(
        found, functional.linear(output, head.weight, head.bias).log_softmax(-1), rtol=0, atol=0
    )
    assert rounded.dtype == torch.float32


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel must be 'chunked' or 'liger', not 'fused'"):
        Softmax(4, 9, kernel="fused")


class OnCuda(torch.Tensor):
    device = torch.device("cuda")


def test_only_a_training_loss_looks_for_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.delitem(sys.modules, "liger_kernel.transformers.functional", raising=False)
    head = Softmax(4, 9, kernel="liger")
    output, targets = torch.randn(5, 2, 4), torch.randint(9, (5, 2))
    with pytest.raises(UserError, match="CUDA devices only, not on the cpu"):
        head.loss(output, targets)
    with pytest.raises(UserError, match=r"pip install -e '\.\[cuda\]'"):
        head.loss(output.as_subclass(OnCuda), targets)
    expected = functional.cross_entropy(
        functional.linear(output, head.weight, head.bias).flatten(0, 1),
        targets.flatten(),
        reduction="none",
    )
    assert_close(head.loss(output, targets, reduction="none").flatten(), expected)
    head.eval()
    assert_close(head.loss(output, targets), expected.mean())
    assert_close(head.loss(output, targets, reduction="sum"), expected.sum())
