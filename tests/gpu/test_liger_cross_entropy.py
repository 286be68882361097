import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lmbench.model import Softmax

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
T, B, H, V = 70, 8, 40, 5000


@pytest.fixture(autouse=True)
def float32_products() -> None:
    pytest.importorskip("liger_kernel")
    assert torch.get_float32_matmul_precision() == "highest"


def problem(bias: bool) -> tuple[Softmax, Tensor, Tensor]:
    torch.manual_seed(0)
    head = Softmax(H, V, bias=bias, kernel="liger").cuda()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.5)
    targets = torch.randint(V, (T, B), device="cuda")
    targets[::3] = -100
    return head, torch.randn(T, B, H, device="cuda", requires_grad=True), targets


def exact(head: Softmax, output: Tensor, targets: Tensor, reduction: str) -> list[Tensor]:
    """Loss and gradients with all logits in float64."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in (output, *head.parameters())]
    logits = functional.linear(*leaves).flatten(0, 1)
    loss = functional.cross_entropy(logits, targets.flatten(), reduction=reduction)
    return [loss.detach(), *torch.autograd.grad(3.5 * loss, leaves)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "bounds"),
    [(torch.float32, (1e-6, 5e-6)), (torch.bfloat16, (2e-3, 2e-2))],
    ids=["float32", "autocast to bfloat16"],
)
def test_value_and_gradients(dtype, bounds: tuple[float, float], bias: bool, reduction) -> None:
    head, output, targets = problem(bias)
    expected = exact(head, output, targets, reduction)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = head.loss(output, targets, reduction=reduction)
    assert loss.dtype == torch.float32
    (3.5 * loss).backward()
    found = [loss.detach(), output.grad, *(parameter.grad for parameter in head.parameters())]
    for value, right, bound in zip(found, expected, [bounds[0], *[bounds[1]] * 3], strict=False):
        assert (value.double() - right).norm() / right.norm() <= bound


def test_never_holds_all_logits() -> None:
    head, output, targets = problem(bias=True)
    head.loss(output, targets).backward()  # allocates what stays, and compiles the kernels
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    head.loss(output, targets).backward()
    assert torch.cuda.max_memory_allocated() - before < T * B * V * 4
