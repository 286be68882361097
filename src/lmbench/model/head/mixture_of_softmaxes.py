"""Mixture of softmaxes. Shape letters: N tokens (any number of dimensions), H hidden, V vocabulary.

K components.
"""

from functools import reduce
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lmbench.loss.linear_cross_entropy import autocast_dtype, mixture_cross_entropy
from lmbench.model.dropout import LockedDropout, require_probabilities
from lmbench.model.head.base import Head


class MixtureOfSoftmaxes(Head):
    """Weighted mean of K softmaxes, whose matrix of log-probabilities is not limited in rank.

    An output h gives the mixture weights (priors), softmax(h Π), and a vector for each of them,
    tanh(h W_k + b_k), of H features. One linear layer turns these vectors into the logits of all
    components.

    Source: Yang et al. 2018, "Breaking the softmax bottleneck" (arXiv 1711.03953), whose code has
    the b_k and the same initial values: Π, W_k and b_k from U(−1/√H, 1/√H), the weight of the
    layer from U(−0.1, 0.1), its bias 0. There the vectors may be narrower than h, and 1e-8 is added
    to every probability.

    Args:
        input_size: Size of the core's output, H.
        vocabulary_size: Number of words, V.
        num_components: Number of softmaxes, K.
        latent_dropout: Probability that a feature of a component's vector is dropped, the same at
            all steps of a window.
        autocast: Whether, under autocast to bfloat16 (``trainer.precision=bf16-mixed``), the
            training loss is computed in bfloat16 rather than float32. Without gradients it is
            always computed in float32.

    Raises:
        ValueError: If ``num_components`` is less than 1, or ``latent_dropout`` is not in [0, 1).
    """

    def __init__(
        self,
        input_size: int,
        vocabulary_size: int,
        *,
        num_components: int = 15,
        latent_dropout: float = 0.29,
        autocast: bool = True,
    ) -> None:
        super().__init__()
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, not {num_components}")
        require_probabilities(latent_dropout=latent_dropout)
        self.input_size = input_size
        self.vocabulary_size = vocabulary_size
        self.num_components = num_components
        self.autocast = autocast
        self.prior = nn.Linear(input_size, num_components, bias=False)
        self.latent = nn.Linear(input_size, num_components * input_size)
        self.latent_dropout = LockedDropout(latent_dropout)
        self.dropouts = (self.latent_dropout,)
        self.weight = nn.Parameter(torch.empty(vocabulary_size, input_size))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        nn.init.uniform_(self.weight, -0.1, 0.1)

    def loss(
        self,
        output: Float[Tensor, "*N H"],
        targets: Int[Tensor, "*N"],
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Float[Tensor, "..."]:
        """Negative log-likelihood of ``targets`` in nats, without ever holding all logits.

        Arguments, precision (except for ``autocast``) and errors are those of
        :func:`lmbench.loss.linear_cross_entropy.linear_cross_entropy`.
        """
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        dtype = autocast_dtype(output.device.type) if self.autocast else None
        return mixture_cross_entropy(
            *self._components(output, exact, dtype or exact),
            self.weight,
            self.bias,
            targets,
            reduction=reduction,
            dtype=dtype,
        )

    def log_probs(self, output: Float[Tensor, "*N H"]) -> Float[Tensor, "*N V"]:
        """Log-probabilities of all words, in float32 or float64 even under autocast."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        vectors, log_priors = self._components(output, dtype, dtype)
        components = zip(vectors.unbind(-2), log_priors.split(1, -1), strict=True)
        with torch.autocast(output.device.type, enabled=False):
            joint = (
                functional.linear(vector, weight, bias).log_softmax(-1) + log_prior
                for vector, log_prior in components
            )
            return reduce(torch.logaddexp, joint)  # so only one component's logits are held

    def _components(
        self, output: Float[Tensor, "*N H"], exact: torch.dtype, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "*N K H"], Float[Tensor, "*N K"]]:
        """Vectors and log-priors, in ``exact`` except the product that gives the vectors."""
        sizes = self.num_components, self.input_size
        steps = len(output) if output.dim() > 1 else 1
        with torch.autocast(output.device.type, enabled=False):
            priors = functional.linear(output.to(exact), self.prior.weight.to(exact))
            product = functional.linear(output.to(dtype), self.latent.weight.to(dtype))
            vectors = (product + self.latent.bias.to(exact)).tanh()
            dropped = self.latent_dropout(vectors.view(steps, -1, sizes[0] * sizes[1]))
        return dropped.view(*output.shape[:-1], *sizes), priors.log_softmax(-1)
