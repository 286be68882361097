"""What the LSTM cores share. Shape letters: T time steps, B columns, E embedding, H hidden."""

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias, cast

from jaxtyping import Float
from torch import Tensor, nn

from lmbench.model.core.weight_dropout import lstm_with_weight_dropout

State: TypeAlias = tuple[tuple[Tensor, ...], ...]
"""A tuple of tensors for each layer; an LSTM layer's is ``(h, c)``, each ``(1, B, H)``."""


class CoreOutput(NamedTuple):
    """What a core, or a whole language model, returns for a window."""

    output: Float[Tensor, "T B H"]
    """Outputs of the last layer, after dropout."""
    raw_output: Float[Tensor, "T B H"]
    """The same before dropout."""
    state: State
    """State after the last step, still attached to the graph."""


def detach_state(state: State) -> State:
    """Cuts a state off from the window that made it: here truncated backpropagation ends."""
    return tuple(tuple(tensor.detach() for tensor in layer) for layer in state)


def stack_layers(
    input_size: int, hidden_size: int, output_size: int, num_layers: int
) -> nn.ModuleList:
    """Single LSTM layers of sizes ``input_size`` → ``hidden_size`` → … → ``output_size``.

    Raises:
        ValueError: If ``num_layers`` is less than 1.
    """
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    sizes = [input_size, *[hidden_size] * (num_layers - 1), output_size]
    return nn.ModuleList(nn.LSTM(*pair) for pair in itertools.pairwise(sizes))


def run_layers(
    layers: nn.ModuleList,
    input: Float[Tensor, "T B E"],
    state: State | None,
    *,
    between: Callable[[Tensor], Tensor],
    weight_dropout: float = 0.0,
) -> tuple[Float[Tensor, "T B H"], State]:
    """Runs layers one on top of the other.

    Args:
        layers: What :func:`stack_layers` made.
        input: ``(T, B, E)``.
        state: State before the first step; None for zeros.
        between: Applied to each layer's output but the last one's.
        weight_dropout: Probability that an element of a recurrent weight is dropped in training.

    Returns:
        Outputs of the last layer, and the new state.

    Raises:
        ValueError: If ``state`` has another number of layers.
    """
    lstms = cast(Iterable[nn.LSTM], layers)  # a ModuleList says no more than Module
    if state is None:
        zeros = (input.new_zeros(1, input.shape[1], layer.hidden_size) for layer in lstms)
        state = tuple((zero, zero) for zero in zeros)
    if len(state) != len(layers):
        raise ValueError(f"state must have {len(layers)} layers, got {len(state)}")
    output = input
    new_state = []
    for index, (layer, layer_state) in enumerate(zip(lstms, state, strict=True)):
        if index > 0:
            output = between(output)
        hidden, cell = layer_state
        output, last = lstm_with_weight_dropout(layer, output, (hidden, cell), weight_dropout)
        new_state.append(last)
    return output, tuple(new_state)
