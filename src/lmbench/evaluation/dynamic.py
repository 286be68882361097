"""Dynamic evaluation: the model keeps learning from what it has just been scored on.

Source: Krause et al. 2018, "Dynamic Evaluation of Neural Sequence Models" (arXiv 1709.07432), and
their published code.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lmbench.data.columns import columns_for_training
from lmbench.evaluation.evaluator import Evaluator, ReadingMode
from lmbench.evaluation.progress import progress_of
from lmbench.evaluation.reading import Learn, scaled_dropouts
from lmbench.evaluation.tuning import Grid, require_grid, values_to_try
from lmbench.files import replacing
from lmbench.model.contracts import detach_state

log = logging.getLogger(__name__)

Statistics = dict[str, Tensor]
"""Parameter name → root mean square of its gradients over segments of the training text."""


@dataclass
class Dynamic(ReadingMode):
    """Dynamic evaluation.

    After each segment, with its mean gradient g, the trained weights θ₀ and the current θ:
    ``rms``: θ ← θ + decay · D · (θ₀ − θ) − lr · g / (MS + epsilon), where MS is the root mean
    square of the gradient over training segments and D = MS / (mean over parameters of their mean
    MS), at most 1 / decay (section 5 of the paper; the published code);
    ``sgd``: θ ← θ + decay · (θ₀ − θ) − lr · g.

    The defaults are those of the paper's AWD-LSTM on WikiText-2, as in its authors' README: lr
    0.002, decay 0.02 and epsilon 0.001 with ``--oldhyper``, which divides the decay by the number
    of parameter tensors, 14, and the other two by √4,177, the root of the number of training
    segments (2,088,628 tokens in 100 columns and segments of 5).

    Args:
        rule: ``"rms"`` or ``"sgd"``.
        lr: η of the paper.
        decay: λ of the paper; 0 for none.
        epsilon: ε of the paper, for ``rms``.
        statistics: How the training split is read for the gradients of ``rms``: the number of
            ``columns`` (100) and the most ``segments`` to read (None: all).
        grid: What tuning tries: one setting after another, in this order.

    Attributes:
        gradients: The statistics that :meth:`prepare` computed; empty before that.

    Raises:
        ValueError: A value is out of range.
    """

    name: ClassVar[str] = "dynamic"
    remedy: ClassVar[str] = "Lower evaluation.dynamic.lr."

    rule: str = "rms"
    lr: float = 3.1e-5
    decay: float = 1.43e-3
    epsilon: float = 1.55e-5
    statistics: Mapping[str, Any] = field(default_factory=dict)
    grid: Grid | None = None
    gradients: Statistics = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.rule not in ("rms", "sgd"):
            raise ValueError(f"rule must be rms or sgd, not {self.rule!r}")
        if not 0.0 <= self.lr < math.inf:
            raise ValueError(f"lr must be finite and at least 0, not {self.lr}")
        if not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"decay must be from 0 to 1, not {self.decay}")
        if not 0.0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be finite and more than 0, not {self.epsilon}")
        known = {"columns": 100, "segments": None}
        if unknown := set(self.statistics) - set(known):
            raise ValueError(f"statistics has columns and segments, but no {min(unknown)}")
        self.statistics = known | dict(self.statistics)
        for name, value in self.statistics.items():
            is_all = name == "segments" and value is None
            if not is_all and not (isinstance(value, int) and value >= 1):
                raise ValueError(
                    f"statistics.{name} must be a whole number of at least 1, not {value}"
                )
        require_grid(self)

    def settings(self) -> dict[str, Any]:
        """The settings as a plain dict; the statistics have an entry of their own."""
        own = {name: getattr(self, name) for name in ("rule", "lr", "decay", "epsilon")}
        statistics = dict(self.statistics) if self.rule == "rms" else None
        return {self.name: own, "statistics": statistics}

    @property
    def why_one_column(self) -> str:
        """That the model would learn from what comes later, if it learns."""
        why = "in several columns the model learns from text that follows what it scores"
        return why if self.lr > 0 else ""

    def prepare(self, evaluator: Evaluator) -> None:
        """Computes the statistics of the gradients, if a rule that may be used needs them.

        Raises:
            UserError: The training split is too short for so many columns.
        """
        if "rms" in (self.rule, *values_to_try(self).get("rule", ())):
            self.gradients = kept_statistics(evaluator, **self.statistics)

    @contextmanager
    def during(self, evaluator: Evaluator) -> Iterator[Learn]:
        """Lets the model learn while it reads, and restores it afterwards."""
        model = evaluator.model
        parameters = list(model.parameters())
        trained = [parameter.detach().clone() for parameter in parameters]
        if self.rule == "sgd":
            rates = [torch.full((), self.lr).to(p) for p in parameters]
            decays = [torch.full((), self.decay).to(p) for p in parameters]
        else:
            root_mean_squares = [
                self.gradients[name].to(parameter) for name, parameter in model.named_parameters()
            ]
            mean = sum(float(value.mean()) for value in root_mean_squares) / len(root_mean_squares)
            rates = [self.lr / (value + self.epsilon) for value in root_mean_squares]
            decays = [(self.decay / mean * v).clamp(max=1.0) for v in root_mean_squares]

        def learn(loss: Float[Tensor, ""]) -> None:
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            with torch.no_grad():
                for parameter, start, gradient, rate, decay in zip(
                    parameters, trained, gradients, rates, decays, strict=True
                ):
                    # Both terms of the rule use the θ from before the step: the decay comes
                    # first, and the gradient's term, which follows, does not depend on θ.
                    parameter.lerp_(start, decay)
                    parameter.addcmul_(gradient, rate, value=-1.0)

        try:
            yield learn
        finally:
            with torch.no_grad():
                for parameter, start in zip(parameters, trained, strict=True):
                    parameter.copy_(start)


def gradient_statistics(evaluator: Evaluator, columns: int, segments: int | None) -> Statistics:
    """Root mean squares of the gradients over segments of the training text, without dropouts.

    Args:
        evaluator: Provides the model, the corpus and, as its window, the time steps of a segment.
        columns: Columns in which the training split is read.
        segments: The most segments to read; None for all.

    Returns:
        Tensors on the CPU; zeros for a parameter that the loss does not depend on.

    Raises:
        UserError: The training split is too short for so many columns.
    """
    model, window = evaluator.model, evaluator.settings.window
    key = "evaluation.dynamic.statistics.columns"
    stream = columns_for_training(evaluator.corpus.train, columns, key)
    parameters = list(model.parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    # A last window of a single target is skipped, as in training and in the published code.
    windows = [rows for rows in stream.windows(window) if rows[0] < stream.num_rows - 1][:segments]
    progress = progress_of("gradient statistics of train", windows[-1][1] * columns)
    state = None
    with progress as on_window, scaled_dropouts(model, 0.0):
        for rows in windows:
            tokens, targets = stream.read(*rows)
            output, _, state = model(tokens.to(model.device), state)
            state = detach_state(state)
            loss = model.head.loss(output, targets.to(model.device))
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total.addcmul_(gradient, gradient)
            on_window(targets.numel(), loss.item() * targets.numel())
    return {name: (total / len(windows)).sqrt().cpu() for name, total in sums.items()}


def kept_statistics(evaluator: Evaluator, columns: int, segments: int | None) -> Statistics:
    """Gradient statistics from a file in the evaluator's folder, which is written if missing.

    A file that is damaged, or was made from anything else, is replaced.
    """
    path = evaluator.folder / "gradient_statistics.safetensors"
    made_from = {
        "weights": evaluator.model.weights_sha256(),
        "corpus": evaluator.corpus.sha256,
        "window": str(evaluator.settings.window),
        "columns": str(columns),
        "segments": str(segments),
    }
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() == made_from:
                names = file.keys()  # the file itself cannot be iterated
                return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        pass  # missing or damaged
    statistics = gradient_statistics(evaluator, columns, segments)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(save(statistics, metadata=made_from))
    except OSError as error:  # only the next evaluation takes longer
        log.warning("%s cannot be written: %s.", path, error.strerror or error)
    return statistics
