"""Cross-entropy of a linear layer that never holds all logits.

Shape letters: N tokens (any number of dimensions), K components of a mixture, H hidden, V
vocabulary.

With a vocabulary of 33,278 and 80·70 tokens one copy of the logits takes 745 MB, and the usual
loss keeps several. Here the tokens pass in chunks through one buffer, and each chunk leaves behind
its loss and its share of the gradients, so that nothing has to be computed twice.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lmbench.machine import multiplies_bfloat16
from lmbench.perplexity import IGNORE_INDEX

# oneDNN generates code for every new shape of a bfloat16 product: with the matrix units of a
# Xeon that took 60 ms, ten times the product itself, and a tail cluster has a new number of rows at
# every step.
ROWS_MULTIPLE = 64

CHUNK_BYTES = 64 * 2**20
"""Size of the logits, and then the probabilities, that are held at a time."""


def linear_cross_entropy(
    input: Float[Tensor, "*N H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, "*N"],
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "..."]:
    """Negative log-likelihood of ``targets`` under ``softmax(input @ weight.T + bias)``.

    Equals ``F.cross_entropy(F.linear(input, weight, bias), targets)``. Unless ``dtype`` says
    otherwise, half-precision arguments are cast up and autocast is ignored, since a perplexity
    needs all digits of a float32.

    Args:
        input: What the layer reads, ``(*N, H)``.
        weight: The layer's weight, ``(V, H)``.
        bias: The layer's bias, ``(V,)``, or None.
        targets: Ids of the right words, ``(*N,)``. ``IGNORE_INDEX`` adds nothing to the loss or to
            any gradient.
        reduction: ``"mean"`` over the scored targets, ``"sum"``, or ``"none"`` (one value per
            target, 0 where ignored). Differentiating ``"none"`` computes the logits twice.
        dtype: Type of logits, probabilities and products, and of each chunk's share of the
            gradients; the shares and the nats are summed in the type of ``weight``, but at least
            float32. None for that type throughout.

    Returns:
        Nats in float32, or float64 if ``weight`` is. If no target is scored, the mean is nan
        and the sum 0, as in ``F.cross_entropy``. It has no second derivative.

    >>> input, weight = torch.zeros(5, 3), torch.zeros(10, 3)
    >>> loss = linear_cross_entropy(input, weight, None, torch.arange(5))
    >>> torch.isclose(loss.exp(), torch.tensor(10.0)).item()
    True
    """
    return mixture_cross_entropy(
        input.unsqueeze(-2),
        input.new_zeros(*targets.shape, 1),
        weight,
        bias,
        targets,
        reduction=reduction,
        dtype=dtype,
    )


def mixture_cross_entropy(
    input: Float[Tensor, "*N K H"],
    log_priors: Float[Tensor, "*N K"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, "*N"],
    *,
    reduction: Literal["mean", "sum", "none"] = "mean",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "..."]:
    """Negative log-likelihood of ``targets`` under a mixture of K softmaxes of one linear layer.

    The distribution is ``Σ_k exp(log_priors[…, k]) · softmax(input[…, k, :] @ weight.T + bias)``.

    Args:
        input: What the layer reads for each component, ``(*N, K, H)``.
        log_priors: Logarithms of the mixture weights, ``(*N, K)``.
        weight: The layer's weight, ``(V, H)``.
        bias: The layer's bias, ``(V,)``, or None.
        targets: As in :func:`linear_cross_entropy`.
        reduction: As there.
        dtype: As there.

    Returns:
        Nats, as there.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    rows = input.reshape(-1, *input.shape[-2:]).to(exact if dtype is None else dtype)
    log_priors = log_priors.reshape(-1, log_priors.shape[-1]).to(exact)
    weight = weight.to(exact)
    bias = None if bias is None else bias.to(exact)
    flat_targets = targets.reshape(-1)
    num_tokens = len(rows)
    if rows.dtype == torch.bfloat16 and rows.device.type == "cpu":
        padding = -num_tokens % ROWS_MULTIPLE
        rows = functional.pad(rows, (0, 0, 0, 0, 0, padding))
        log_priors = functional.pad(log_priors, (0, 0, 0, padding))
        flat_targets = functional.pad(flat_targets, (0, padding), value=IGNORE_INDEX)
    scored = flat_targets != IGNORE_INDEX
    labels = flat_targets.where(scored, 0).long()
    if reduction == "none" or not torch.is_grad_enabled():
        nats = _TokenNats.apply(rows, log_priors, weight, bias, labels) * scored
        if reduction == "none":
            return nats[:num_tokens].reshape(targets.shape)
        total = nats.sum()
    else:
        total = _Sum.apply(rows, log_priors, weight, bias, labels, scored.to(exact))
    # Divided here, in float32: 1/N in bfloat16 would be off by up to 0.4%, for all tokens alike.
    return total / scored.sum() if reduction == "mean" else total


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The type for a training loss that follows autocast, or None for the usual one.

    Only bfloat16: the gradients of a mean over many tokens are too small for float16. Not on a CPU
    that cannot multiply it. And only where gradients are computed: for validation, the loss is
    computed in float32 from the core's outputs, which may be bfloat16.
    """
    if not torch.is_grad_enabled() or not torch.is_autocast_enabled(device_type):
        return None
    if device_type == "cpu" and not multiplies_bfloat16():
        return None
    dtype = torch.get_autocast_dtype(device_type)
    return dtype if dtype == torch.bfloat16 else None


class _Sum(Function):
    """Sum of ``scale`` · nats; its gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        log_priors: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        scale: Tensor,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:4]
        with torch.autocast(input.device.type, enabled=False):
            nats, gradients = _walk(input, log_priors, weight, bias, labels, scale, wanted)
        ctx.save_for_backward(*gradients)
        return (nats * scale).sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor | None, ...]:
        # Not in place: with retain_graph=True the same tensors serve a second backward pass.
        gradients = (
            g if g is None else (g.to(grad_output.dtype) * grad_output).to(g.dtype)
            for g in ctx.saved_tensors
        )
        return (*gradients, None, None)


class _TokenNats(Function):
    """Nats of each token; their weights in the gradient are known only in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        log_priors: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(input, log_priors, weight, bias, labels)
        with torch.autocast(input.device.type, enabled=False):
            nats, _ = _walk(input, log_priors, weight, bias, labels)
        return nats

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_output: Tensor
    ) -> tuple[Tensor | None, ...]:
        input, log_priors, weight, bias, labels = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:4]
        with torch.autocast(input.device.type, enabled=False):
            _, gradients = _walk(input, log_priors, weight, bias, labels, grad_output, wanted)
        return (*gradients, None)


def _walk(
    input: Tensor,
    log_priors: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    scale: Tensor | None = None,
    wanted: tuple[bool, ...] = (False, False, False, False),
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Nats ``(N,)`` and, where wanted, the gradients of the sum of ``scale`` · nats.

    What is computed chunk by chunk has the type of ``input``; nats and sums over chunks have that
    of ``weight``.
    """
    # Every product is written into memory already allocated, which saves time.
    num_tokens, num_components, _ = input.shape
    chunk = max(1, CHUNK_BYTES // (num_components * weight.shape[0] * input.element_size()))
    nats = weight.new_empty(num_tokens)
    buffer = input.new_empty(min(chunk, num_tokens) * num_components, weight.shape[0])
    grad_input = input.new_empty(input.shape) if wanted[0] else None  # rows one after the other
    grad_log_priors = torch.empty_like(log_priors) if wanted[1] else None
    grad_weight = torch.zeros_like(weight) if wanted[2] else None
    grad_bias = torch.zeros_like(bias) if bias is not None and wanted[3] else None
    weight = weight.to(input.dtype)
    bias = None if bias is None else bias.to(input.dtype)
    share = None if weight.dtype == nats.dtype else torch.empty_like(weight)

    for start in range(0, num_tokens, chunk):
        part = slice(start, start + chunk)
        x = input[part].flatten(0, 1)  # a row for each token and component
        label = labels[part].repeat_interleave(num_components).unsqueeze(1)
        logits = buffer[: x.shape[0]]
        if bias is None:
            torch.mm(x, weight.t(), out=logits)
        else:
            torch.addmm(bias, x, weight.t(), out=logits)
        label_logit = logits.gather(1, label)
        largest = logits.amax(1, keepdim=True)
        # exp() over all words is slow where MKL does not know the processor; softmax() is not, and
        # reads a row before writing to it. The largest probability is 1 / Σ exp(logit − largest
        # logit), and cannot underflow.
        probabilities = torch.softmax(logits, 1, out=logits)
        log_total = -probabilities.amax(1, keepdim=True).to(nats.dtype).log()
        component_nats = (largest.to(nats.dtype) - label_logit + log_total).view(-1, num_components)
        joint = log_priors[part] - component_nats
        nats[part] = -joint.logsumexp(1)
        if scale is None:
            continue

        # A component's logits have the gradient scale · its share in the target's probability ·
        # (softmax − one-hot). The factors are applied to the narrow side of each product, never to
        # the vocabulary-wide matrix.
        factors = joint.softmax(1) * scale[part].unsqueeze(1)
        if grad_log_priors is not None:
            torch.neg(factors, out=grad_log_priors[part])
        # Not scatter_(): on a CPU that copies a whole bfloat16 matrix.
        difference = probabilities
        difference[torch.arange(x.shape[0], device=x.device), label.squeeze(1)] -= 1
        factor = factors.view(-1, 1).to(x.dtype)
        if grad_input is not None:
            torch.mm(difference, weight, out=grad_input[part].view_as(x)).mul_(factor)
        if grad_weight is not None:
            if share is None:
                grad_weight.addmm_(difference.t(), x * factor)
            else:
                torch.mm(difference.t(), x * factor, out=share)
                _add(grad_weight, share)
        if grad_bias is not None:
            grad_bias += factor.squeeze(1) @ difference
    return nats, (grad_input, grad_log_priors, grad_weight, grad_bias)


def _add(total: Tensor, share: Tensor) -> None:
    """Adds a matrix of another type in place, in parts whose cast copies stay in the cache."""
    for rows, more in zip(total.split(512), share.split(512), strict=True):
        rows.add_(more)
