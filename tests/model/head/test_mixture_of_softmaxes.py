from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lmbench.model.head import MixtureOfSoftmaxes, Softmax

T, B, H, V, K = 6, 4, 5, 31, 3


def make(*, components: int = K, dropout: float = 0.0, tied: bool = False) -> MixtureOfSoftmaxes:
    """A head with large weights, so that its components differ, and no parameter is zero."""
    head = MixtureOfSoftmaxes(H, V, num_components=components, latent_dropout=dropout).double()
    if tied:
        head.tie(nn.Parameter(torch.empty(V, H, dtype=torch.float64)))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head


def outputs(*shape: int) -> Tensor:
    return torch.randn(*shape, H, dtype=torch.float64, requires_grad=True)


def formula(head: MixtureOfSoftmaxes, h: Tensor) -> Tensor:
    """Probabilities ``(V,)`` after one output, component by component."""
    shares = (head.prior.weight @ h).exp()
    shares = shares / shares.sum()
    total = torch.zeros(V, dtype=torch.float64)
    for k in range(head.num_components):
        rows = slice(k * H, (k + 1) * H)
        vector = torch.tanh(head.latent.weight[rows] @ h + head.latent.bias[rows])
        likelihoods = (head.weight @ vector + head.bias).exp()
        total = total + shares[k] * likelihoods / likelihoods.sum()
    return total


@pytest.mark.parametrize("tied", [True, False])
def test_values_and_gradients_are_those_of_the_formula(tied: bool) -> None:
    head, output, targets = make(tied=tied), outputs(T, B), torch.randint(V, (T, B))
    probabilities = torch.stack([formula(head, h) for h in output.flatten(0, 1)])
    probabilities = probabilities.view(T, B, V)
    assert_close(head.log_probs(output), probabilities.log())
    expected = -probabilities.gather(2, targets.unsqueeze(2)).log().mean()
    loss = head.loss(output, targets)
    assert_close(loss, expected)
    leaves = [output, *head.parameters()]
    found, wanted = (torch.autograd.grad(each, leaves) for each in (loss, expected))
    assert_close(found, wanted)
    assert all(gradient.any() for gradient in found)


def test_initial_values_have_the_published_ranges() -> None:
    head = MixtureOfSoftmaxes(100, 500, num_components=8)
    of_linear = 100**-0.5
    ranges = {"prior": of_linear, "latent": of_linear, "weight": 0.1, "bias": 0.0}
    for name, parameter in head.named_parameters():
        expected = ranges[name.partition(".")[0]]
        assert 0.97 * expected <= float(parameter.detach().abs().max()) <= expected, name


def test_log_probs_have_a_rank_that_no_softmax_reaches() -> None:
    """A softmax gives h W plus a bias for each word and a normalizer for each output."""
    output = outputs(4 * V).detach()
    softmax = Softmax(H, V).double()
    nn.init.normal_(softmax.bias)
    assert torch.linalg.matrix_rank(softmax.log_probs(output), rtol=1e-10) == H + 2
    assert torch.linalg.matrix_rank(make().log_probs(output), rtol=1e-10) == V


def test_a_column_has_one_mask_for_all_steps() -> None:
    head, output = make(dropout=0.5), outputs(B).detach().expand(T, B, H)
    targets = torch.arange(B).expand(T, B)
    torch.manual_seed(1)
    log_probs = head.log_probs(output)
    torch.manual_seed(1)
    nats = head.loss(output, targets, reduction="none")
    assert_close(nats, -log_probs.gather(2, targets.unsqueeze(2)).squeeze(2))
    assert_close(log_probs, log_probs[:1].expand(T, B, V))
    assert not torch.allclose(head.log_probs(output), log_probs)

    same = head.log_probs(output[:, :1].expand(T, B, H))[0]
    assert len({tuple(column.tolist()) for column in same}) == B
    assert_close(head.eval().log_probs(output), make_like(head).log_probs(output))


def make_like(head: MixtureOfSoftmaxes) -> MixtureOfSoftmaxes:
    """The same head without dropout."""
    other = make()
    other.load_state_dict(head.state_dict())
    return other


def test_dropout_acts_on_what_the_tanh_gives() -> None:
    head = MixtureOfSoftmaxes(H, H, num_components=1, latent_dropout=0.75)
    with torch.no_grad():
        head.latent.bias.fill_(20.0)
        head.weight.copy_(torch.eye(H))
    log_probs = head.log_probs(torch.zeros(1, 200, H))[0]
    gaps = log_probs - log_probs.amin(1, keepdim=True)  # of logits that are 0 or 1 / 0.25
    assert_close(gaps, 4.0 * (gaps > 2).float())
    assert (gaps > 2).float().mean().item() == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize(
    "arguments",
    [{"num_components": 0}, {"latent_dropout": 1.0}, {"latent_dropout": -0.1}],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(arguments))} "):
        MixtureOfSoftmaxes(H, V, **arguments)
