import sys
from importlib import import_module
from types import ModuleType

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


@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_log_probs_are_one_distribution(bias: bool) -> None:
    torch.manual_seed(0)
    head = Softmax(4, 9, bias=bias).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    output = torch.randn(5, 2, 4, dtype=torch.float64)
    targets = torch.randint(9, (5, 2))
    log_probs = head.log_probs(output)
    assert_close(log_probs.exp().sum(-1), torch.ones(5, 2, dtype=torch.float64))
    logits = output @ head.weight.t() + (head.bias if bias else 0.0)
    nats = logits.logsumexp(-1) - logits.gather(-1, targets[..., None]).squeeze(-1)
    assert_close(head.loss(output, targets, reduction="none"), nats)
    assert_close(-log_probs.gather(-1, targets[..., None]).squeeze(-1), nats)
    assert_close(head.loss(output, targets), nats.mean())
    kept = targets != targets[0, 0]
    total = head.loss(output, targets, reduction="sum", ignore_index=int(targets[0, 0]))
    assert_close(total, nats[kept].sum())


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


def test_autocast_rounds_the_training_loss_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss_module = import_module("lmbench.loss.linear_cross_entropy")  # hidden by its function
    monkeypatch.setattr(loss_module, "multiplies_bfloat16", lambda: True)
    torch.manual_seed(0)
    head = Softmax(40, 300, autocast=True)
    output, targets = torch.randn(200, 40), torch.randint(300, (200,))
    logits = functional.linear(output.double(), head.weight.double(), head.bias.double())
    expected = functional.cross_entropy(logits, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.loss(output, targets)
        with torch.no_grad():
            assert_close(head.loss(output, targets).double(), expected, rtol=1e-6, atol=0)
    assert loss.dtype == torch.float32
    assert 1e-6 < abs(loss.item() / expected.item() - 1) < 2**-9
    assert_close(head.loss(output, targets).double(), expected, rtol=1e-6, atol=0)


def test_a_kernel_whose_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.delitem(sys.modules, "liger_kernel.transformers.functional", raising=False)
    # with the argument's name first, build.py can put the config's key in its place
    with pytest.raises(ValueError, match=r"^kernel .*pip install -e '\.\[cuda\]'"):
        Softmax(4, 9, kernel="liger")


def test_the_liger_kernel_refuses_the_cpu_but_does_not_stand_in_evaluations_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.functional")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].liger_fused_linear_cross_entropy = pytest.fail  # not to be called
    head = Softmax(4, 9, kernel="liger")
    output = torch.randn(5, 2, 4)
    targets = torch.randint(9, (5, 2))
    with pytest.raises(UserError, match="on CUDA devices only, not on the cpu"):
        head.loss(output, targets)
    expected = functional.cross_entropy(
        functional.linear(output, head.weight, head.bias).flatten(0, 1),
        targets.flatten(),
        reduction="none",
    )
    assert_close(head.loss(output, targets, reduction="none").flatten(), expected)
    with torch.no_grad():
        assert_close(head.loss(output, targets), expected.mean())
        assert_close(head.loss(output, targets, reduction="sum"), expected.sum())
