"""Dynamic evaluation: the model goes on learning from what it has just been scored on.

Source: Krause et al. 2018, "Dynamic Evaluation of Neural Sequence Models" (arXiv 1709.07432), and
their published code.

Shape letters: T time steps of a segment, B columns.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lmbench.evaluation.gradient_statistics import Statistics
from lmbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class Dynamic:
    """Settings of dynamic evaluation.

    After each segment, with its mean gradient g, the trained weights θ₀ and today's θ:
    ``rms``: θ ← θ + decay · D · (θ₀ − θ) − lr · g / (MS + epsilon), where MS is the root mean
    square of the gradient over training segments and D = MS / (mean over parameters of their mean
    MS), at most 1 / decay (section 5 of the paper; the published code);
    ``sgd``: θ ← θ + decay · (θ₀ − θ) − lr · g.

    The defaults are those of the paper's AWD-LSTM on WikiText-2, by its authors' README: lr 0.002,
    decay 0.02 and epsilon 0.001 with ``--oldhyper``, which divides the decay by the number of
    parameter tensors, 14, and the other two by √4,177, the root of the number of training segments
    (2,088,628 tokens in 100 columns and segments of 5).

    Args:
        rule: ``"rms"`` or ``"sgd"``.
        lr: η of the paper.
        decay: λ of the paper; 0 for none.
        epsilon: ε of the paper, for ``rms``.

    Raises:
        ValueError: A value is out of its range.
    """

    rule: str = "rms"
    lr: float = 3.1e-5
    decay: float = 1.43e-3
    epsilon: float = 1.55e-5

    def __post_init__(self) -> None:
        if self.rule not in ("rms", "sgd"):
            raise ValueError(f"rule must be rms or sgd, not {self.rule!r}")
        if not 0.0 <= self.lr < math.inf:
            raise ValueError(f"lr must be finite and at least 0, not {self.lr}")
        if not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"decay must be from 0 to 1, not {self.decay}")
        if not 0.0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be finite and more than 0, not {self.epsilon}")


@contextmanager
def learning(
    model: LanguageModel, dynamic: Dynamic, statistics: Statistics | None
) -> Iterator[Callable[[Float[Tensor, ""]], None]]:
    """Lets a model learn while it reads; it is afterwards what it was before.

    Args:
        model: The trained model.
        dynamic: Settings.
        statistics: Statistics of the gradients, for the rule ``rms``.

    Yields:
        What takes the mean nats of a segment, with their graph, and changes the model by them: the
        ``learn`` of :func:`lmbench.evaluation.reading.read_stream`.

    Raises:
        ValueError: The rule is ``rms``, and there are no statistics.
    """
    parameters = list(model.parameters())
    trained = [parameter.detach().clone() for parameter in parameters]
    if dynamic.rule == "sgd":
        rates = [torch.full((), dynamic.lr).to(p) for p in parameters]
        decays = [torch.full((), dynamic.decay).to(p) for p in parameters]
    elif statistics is None:
        raise ValueError("the rule rms needs the statistics of the gradients")
    else:
        root_mean_squares = [
            statistics[name].to(parameter) for name, parameter in model.named_parameters()
        ]
        mean = sum(float(value.mean()) for value in root_mean_squares) / len(root_mean_squares)
        rates = [dynamic.lr / (value + dynamic.epsilon) for value in root_mean_squares]
        decays = [(dynamic.decay / mean * v).clamp(max=1.0) for v in root_mean_squares]

    def learn(loss: Float[Tensor, ""]) -> None:
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        with torch.no_grad():
            for parameter, start, gradient, rate, decay in zip(
                parameters, trained, gradients, rates, decays, strict=True
            ):
                # Both terms of the rule see the θ of before: the way back comes first, and what is
                # subtracted then does not depend on θ.
                parameter.lerp_(start, decay)
                parameter.addcmul_(gradient, rate, value=-1.0)

    try:
        yield learn
    finally:
        with torch.no_grad():
            for parameter, start in zip(parameters, trained, strict=True):
                parameter.copy_(start)
