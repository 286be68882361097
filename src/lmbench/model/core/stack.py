"""What the LSTM cores share. Shape letters: T time steps, B columns, E embedding, H hidden."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmbench.machine import multiplies_bfloat16
from lmbench.model.contracts import State

GATES_BYTES = 64 * 2**20


def stack_layers(
    input_size: int, hidden_size: int, output_size: int, num_layers: int
) -> nn.ModuleList:
    """Single LSTM layers of sizes ``input_size`` → ``hidden_size`` → … → ``output_size``."""
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
    weight_dropout: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> tuple[Float[Tensor, "T B H"], State]:
    """Runs layers one on top of the other.

    Args:
        layers: What :func:`stack_layers` made.
        input: ``(T, B, E)``.
        state: State before the first step; None for zeros.
        between: Applied to each layer's output but the last one's.
        weight_dropout: Applied to each layer's recurrent weight.

    Returns:
        Outputs of the last layer, and the new state.

    Raises:
        ValueError: If ``state`` has another number of layers.
    """
    lstms = cast(Iterable[nn.LSTM], layers)  # a ModuleList says no more than Module
    if state is None:
        zeros = (input.new_zeros(1, input.shape[1], layer.hidden_size) for layer in lstms)
        state = tuple((zero, zero) for zero in zeros)
    output = input
    new_state = []
    for index, (layer, (hidden, cell)) in enumerate(zip(lstms, state, strict=True)):
        if index > 0:
            output = between(output)
        _, recurrent_weight, *_ = layer.all_weights[0]
        output, last = run_lstm(layer, output, (hidden, cell), weight_dropout(recurrent_weight))
        new_state.append(last)
    return output, tuple(new_state)


def run_lstm(
    layer: nn.LSTM,
    input: Float[Tensor, "T B E"],
    state: tuple[Float[Tensor, "1 B H"], Float[Tensor, "1 B H"]],
    recurrent_weight: Float[Tensor, "4*H H"],
) -> tuple[Float[Tensor, "T B H"], tuple[Float[Tensor, "1 B H"], Float[Tensor, "1 B H"]]]:
    """Runs a single-layer LSTM, all time steps with the same recurrent weight.

    With one from :class:`lmbench.model.dropout.WeightDropout`, it is the LSTM of AWD-LSTM.

    On a CPU a long window is run in parts, one after the other, so that what the backward pass
    needs at one time stays small. Autocast to bfloat16 is ignored on a CPU that cannot multiply it,
    and on a GPU, where cuDNN's LSTM would run in float16 instead (PyTorch's
    ATen/cudnn/AutocastRNN.cpp), too narrow for gradients that no loss scaler has multiplied.

    Args:
        layer: LSTM of one layer, time-major.
        input: ``(T, B, E)``.
        state: ``(h, c)``, each ``(1, B, H)``.
        recurrent_weight: ``(4H, H)``, in the place of ``layer.weight_hh_l0``, or that itself.

    Returns:
        Output ``(T, B, H)`` and the new state.
    """
    hidden, cell = state
    if _ignores_autocast(input.device.type):
        dtype = recurrent_weight.dtype
        with torch.autocast(input.device.type, enabled=False):
            state = (hidden.to(dtype), cell.to(dtype))
            return run_lstm(layer, input.to(dtype), state, recurrent_weight)
    # torch.lstm instead of a weight put into the layer, even for the length of a call: on a GPU
    # nn.LSTM would then move all its parameters to new memory, in place, at every forward pass.
    input_weight, _, *biases = layer.all_weights[0]
    outputs = []
    with warnings.catch_warnings():
        # cuDNN says that it copies the weights together, and that calling flatten_parameters()
        # would help. It cannot: a dropped weight is a new one each time.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
        for part in input.chunk(_num_parts(layer, input)):
            output, hidden, cell = torch.lstm(
                part,
                (hidden, cell),
                [input_weight, recurrent_weight, *biases],
                has_biases=True,
                num_layers=1,
                dropout=0.0,
                train=layer.training,
                bidirectional=False,
                batch_first=False,
            )
            outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), (hidden, cell)


def _ignores_autocast(device_type: str) -> bool:
    if device_type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device_type):
        return False
    if device_type == "cpu":
        return not multiplies_bfloat16()
    return torch.get_autocast_dtype(device_type) == torch.bfloat16


def _num_parts(layer: nn.LSTM, input: Tensor) -> int:
    if input.device.type != "cpu" or not torch.is_grad_enabled():
        return 1
    num_steps, batch_size, _ = input.shape
    gates_bytes = num_steps * batch_size * 4 * layer.hidden_size * input.element_size()
    return math.ceil(gates_bytes / GATES_BYTES)
