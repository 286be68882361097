"""Reading a stream with a model, target by target.

Shape letters: H hidden, N scored targets of a stream.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmbench.data.columns import Columns
from lmbench.evaluation.progress import OnWindow
from lmbench.model.contracts import detach_state
from lmbench.model.dropout import Dropouts
from lmbench.model.language_model import LanguageModel
from lmbench.perplexity import IGNORE_INDEX, Score

Learn = Callable[[Float[Tensor, ""]], object]
"""Takes the mean nats of a window, with their graph, and may use them to change the model."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a model made of the targets of a stream, in the stream's order.

    Args:
        positions: (N,) place of each scored target in the stream, ascending; the first token of
            the stream, which nothing precedes, is never a target.
        targets: (N,) their ids.
        log_probs: (N,) their log-probabilities, in nats, as float64 whatever the model computes in.
        outputs: (N, H) the head's inputs that predicted them, if they were asked for.
        extra_divisor: What is added to N in the divisor of a mean (see
            :class:`lmbench.data.columns.Columns`).
    """

    positions: Int[np.ndarray, " N"]
    targets: Int[np.ndarray, " N"]
    log_probs: Float[Tensor, " N"]
    outputs: Float[Tensor, "N H"] | None = None
    extra_divisor: int = 0

    @property
    def score(self) -> Score:
        """The score of all targets; the sum is exact, so the order of reading cannot change it."""
        nats = -math.fsum(self.log_probs.tolist())
        return Score(nats, len(self.positions), self.extra_divisor)


def read_stream(
    model: LanguageModel,
    columns: Columns,
    *,
    window: int,
    keep_outputs: bool = False,
    learn: Learn | None = None,
    dropout_factor: float = 0.0,
    on_window: OnWindow = lambda num_scored, nats: None,
) -> Reading:
    """Scores every target of the columns, in windows that pass the state on.

    Args:
        model: The model, in evaluation mode.
        columns: How the stream is read.
        window: Time steps that are read at once.
        keep_outputs: Whether to keep the head's inputs; they take 4·N·H bytes on the CPU.
        learn: Called once a window is scored, see :data:`Learn`; its changes to the model take
            effect from the next window on. With None, no gradients are computed.
        dropout_factor: Factor on the probabilities of the model's dropouts.
        on_window: Called after each window.
    """
    num_places = len(columns.ids) - 1
    log_probs = torch.zeros(num_places, dtype=torch.float64)
    scored = np.zeros(num_places, dtype=bool)
    outputs = torch.empty(num_places, model.head.input_size) if keep_outputs else None
    state = None
    with scaled_dropouts(model, dropout_factor, frozen=learn is None):
        for rows in columns.windows(window):
            tokens, targets = columns.read(*rows)
            here = targets != IGNORE_INDEX
            places = columns.places(*rows)[here.numpy()]
            output, _, state = model(tokens.to(model.device), state)
            state = detach_state(state)
            nats = model.head.nats(output, targets.to(model.device))
            if learn is not None and len(places):
                learn(nats.sum() / len(places))
            nats = nats.detach().cpu().double()[here]
            log_probs[places] = -nats
            scored[places] = True
            if outputs is not None:
                outputs[places] = output.detach().float().cpu()[here]
            on_window(len(places), float(nats.sum()))
    places = np.flatnonzero(scored)
    if len(places) < num_places:
        log_probs = log_probs[places]
        outputs = None if outputs is None else outputs[places]
    positions = places + 1
    return Reading(positions, columns.ids[positions], log_probs, outputs, columns.extra_divisor)


@contextmanager
def scaled_dropouts(model: LanguageModel, factor: float, *, frozen: bool = False) -> Iterator[None]:
    """Scales the dropouts, by 0 as in evaluation, in a way that allows gradients.

    A cuDNN LSTM can be differentiated in training mode only, and oneDNN's rounds differently when
    gradients are switched off; both standard and dynamic evaluation read like this, so that they
    begin with exactly the same numbers.

    Args:
        model: The model; it is in evaluation mode afterwards, and otherwise as it was.
        factor: Factor on the probabilities of its dropouts.
        frozen: Whether to keep no graph.
    """
    requires_grad = [parameter.requires_grad for parameter in model.parameters()]
    recurrent = {m: m.dropout for m in model.modules() if isinstance(m, nn.RNNBase)}
    dropouts = Dropouts(model.dropouts)
    dropouts.scale(factor)
    model.train(factor > 0).requires_grad_(not frozen)
    for module in recurrent:
        module.training, module.dropout = True, 0.0
    try:
        with torch.enable_grad():
            yield
    finally:
        model.eval()
        dropouts.scale(1.0)
        for parameter, was in zip(model.parameters(), requires_grad, strict=True):
            parameter.requires_grad_(was)
        for module, was in recurrent.items():
            module.dropout = was
