"""How large each weight's gradient is on the training text, for dynamic evaluation.

Shape letters: T time steps of a segment, B columns, N tokens of a split.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lmbench.data.columns import columns_for_training
from lmbench.evaluation.reading import OnWindow, dropouts_off
from lmbench.files import replacing
from lmbench.model.core import detach_state
from lmbench.model.language_model import LanguageModel

log = logging.getLogger(__name__)

Statistics = dict[str, Tensor]
"""Parameter's name → root mean square of its gradients over segments of the training text."""


def gradient_statistics(
    model: LanguageModel,
    train_ids: Int[np.ndarray, " N"],
    *,
    window: int,
    num_columns: int = 100,
    num_segments: int | None = None,
    on_window: OnWindow = lambda num_scored, nats: None,
) -> Statistics:
    """Root mean squares of the gradients over segments of the training text.

    Source: Krause et al. 2018 (arXiv 1709.07432), section 5.

    Args:
        model: The trained model; its dropouts are off.
        train_ids: (N,) the training split.
        window: Time steps of a segment, T.
        num_columns: B.
        num_segments: Segments that are read at most; None for all.
        on_window: Called after each window; see :data:`OnWindow`.

    Returns:
        On the CPU; zeros for a parameter that the loss does not depend on.

    Raises:
        UserError: The split is too short for so many columns.
    """
    columns = columns_for_training(train_ids, num_columns)
    parameters = list(model.parameters())
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    starts = range(0, columns.num_rows, window)[:num_segments]
    state = None
    with dropouts_off(model):
        for start in starts:
            tokens, targets = columns.read(start, min(start + window, columns.num_rows))
            output, _, state = model(tokens.to(model.device), state)
            state = detach_state(state)
            loss = model.head.loss(output, targets.to(model.device))
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            for total, gradient in zip(sums, gradients, strict=True):
                total.addcmul_(gradient, gradient)
            on_window(targets.numel(), loss.item() * targets.numel())
    names = [name for name, _ in model.named_parameters()]
    return {
        name: (total / len(starts)).sqrt().cpu() for name, total in zip(names, sums, strict=True)
    }


def keep_statistics(
    path: Path,
    made_from: Mapping[str, object],
    shapes: Mapping[str, torch.Size],
    compute: Callable[[], Statistics],
) -> Statistics:
    """Reads statistics from a file, or computes them and writes it, if it can be written.

    Args:
        path: The file, in safetensors' format.
        made_from: All that decides the statistics; a file made from anything else is written anew.
        shapes: Shapes of the statistics, by name; a file that holds others is written anew too.
        compute: Makes them.
    """
    # Training imports this module too, and has to do without on a machine with little more than
    # torch and Lightning.
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    wanted = {key: str(value) for key, value in made_from.items()}
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() == wanted:
                names = file.keys()
                kept = {name: file.get_tensor(name) for name in names}
                if {name: value.shape for name, value in kept.items()} == shapes:
                    return kept
    except (OSError, SafetensorError):
        pass  # none there, or damaged
    statistics = compute()
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(save(statistics, metadata=wanted))
    except OSError as error:  # it costs the next evaluation time, and this one nothing
        log.warning("%s cannot be written: %s.", path, error.strerror or error)
    return statistics
