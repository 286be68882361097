"""Cores made of layers. Shape letters: T time steps, B columns, E embedding, H hidden."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmbench.machine import multiplies_bfloat16
from lmbench.model.contracts import CoreOutput, State
from lmbench.model.dropout import Dropout, LockedDropout, WeightDropout, require_probabilities


class Layer(Protocol):
    """What a core is a stack of: an ``nn.Module`` that runs a window."""

    def __call__(
        self,
        input: Float[Tensor, "T B E"],
        state: Sequence[Tensor] | None,
        weight_dropout: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, "T B H"], tuple[Tensor, ...]]:
        """Outputs and the new state.

        Args:
            input: ``(T, B, E)``.
            state: The state that the layer returned last, possibly in float32 beside weights in
                bfloat16; None for zeros.
            weight_dropout: To be called once in a window, with the recurrent weight; in a layer
                without one, with the weight that makes its gates (in mLSTM, the up-projection).
        """
        ...


class Stack(nn.Module, ABC):
    """Layers one on top of the other, with the dropouts of AWD-LSTM.

    A core says in :meth:`make_layer` what its layers are. What that reads of ``self`` must be set
    before ``super().__init__``, which calls it.

    Args:
        input_size: Size of a step's input, E.
        hidden_size: Size of every layer but the last.
        output_size: Size of the last layer, H; None for ``hidden_size``.
        num_layers: Number of layers.
        input_dropout: Probability that an element of the input is dropped, for a whole window.
        hidden_dropout: The same between layers.
        output_dropout: The same on the last layer's output.
        weight_dropout: Probability that an element of a recurrent weight is dropped for a window;
            in a layer without one, of the weight that makes its gates, as in AWD-QRNN (in mLSTM, of
            the up-projection).
        locked_dropout: Whether the dropouts of input, layers and output keep one mask for a whole
            window; False for ordinary dropout, which drops anew at every step.

    Raises:
        ValueError: If a probability is not in [0, 1) or ``num_layers`` is less than 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        num_layers: int = 3,
        *,
        input_dropout: float,
        hidden_dropout: float,
        output_dropout: float,
        weight_dropout: float,
        locked_dropout: bool = True,
    ) -> None:
        super().__init__()
        require_probabilities(
            input_dropout=input_dropout,
            hidden_dropout=hidden_dropout,
            output_dropout=output_dropout,
            weight_dropout=weight_dropout,
        )
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.input_size = input_size
        self.output_size = hidden_size if output_size is None else output_size
        self.build(hidden_size, num_layers)
        dropout = LockedDropout if locked_dropout else Dropout
        self.input_dropout = dropout(input_dropout)
        self.hidden_dropout = dropout(hidden_dropout)
        self.output_dropout = dropout(output_dropout)
        self.weight_dropout = WeightDropout(weight_dropout)
        self.dropouts = (
            self.input_dropout,
            self.hidden_dropout,
            self.output_dropout,
            self.weight_dropout,
        )

    @abstractmethod
    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """A :class:`Layer` of these sizes."""

    def build(self, hidden_size: int, num_layers: int) -> None:
        """Makes everything that has weights."""
        sizes = [self.input_size, *[hidden_size] * (num_layers - 1), self.output_size]
        self.layers = nn.ModuleList(self.make_layer(*pair) for pair in itertools.pairwise(sizes))

    def run(
        self, input: Float[Tensor, "T B E"], state: State | None
    ) -> tuple[Float[Tensor, "T B H"], State]:
        """Everything between the dropouts of input and output.

        Raises:
            TypeError: See :func:`run_layer`.
            ValueError: If ``state`` has a different number of layers.
        """
        layers = list(cast(Iterable[Layer], self.layers))
        states = [None] * len(layers) if state is None else state
        output, new_state = input, []
        for index, (layer, own) in enumerate(zip(layers, states, strict=True)):
            if index > 0:
                output = self.hidden_dropout(output)
            output, last = run_layer(layer, output, own, self.weight_dropout)
            new_state.append(last)
        return output, tuple(new_state)

    def forward(self, input: Float[Tensor, "T B E"], state: State | None = None) -> CoreOutput:
        """Runs a window, from ``state`` or from zeros."""
        with autocast_where_fast(input.device.type):
            raw_output, state = self.run(self.input_dropout(input), state)  # (T, B, H)
        return CoreOutput(self.output_dropout(raw_output), raw_output, state)


def run_layer(
    layer: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output and state of a layer.

    Raises:
        TypeError: If the layer returned a tensor as its state, not a tuple of tensors.
    """
    output, state = layer(*args, **kwargs)
    if isinstance(state, Tensor):  # its first column would pass for the state
        raise TypeError(f"{type(layer).__name__} must return (output, (state, …))")
    return output, state


def autocast_where_fast(device_type: str) -> AbstractContextManager[object]:
    """Turns off autocast to bfloat16 on a CPU that cannot multiply it."""
    if device_type == "cpu" and torch.is_autocast_enabled("cpu") and not multiplies_bfloat16():
        return torch.autocast("cpu", enabled=False)
    return nullcontext()


def to_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or float64 if it has that type: sums over steps need the digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
