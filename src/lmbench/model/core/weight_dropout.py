"""An LSTM layer whose recurrent weight is dropped.

Shape letters: T time steps, B columns, E input, H hidden.
"""

import math
import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmbench.machine import multiplies_bfloat16
from lmbench.model.dropout import drop_elements

GATES_BYTES = 64 * 2**20


def lstm_with_weight_dropout(
    layer: nn.LSTM,
    input: Float[Tensor, "T B E"],
    state: tuple[Float[Tensor, "1 B H"], Float[Tensor, "1 B H"]],
    p: float,
) -> tuple[Float[Tensor, "T B H"], tuple[Float[Tensor, "1 B H"], Float[Tensor, "1 B H"]]]:
    """Runs a single-layer LSTM with elements of its recurrent weight dropped (DropConnect).

    One mask serves all time steps. The layer's own weight is only read, and gets the gradient.

    Source: Wan et al. 2013; Merity et al. 2017 (arXiv 1708.02182), section 2.

    On a CPU a long window is run in parts, one after the other, so that what the backward pass
    needs at a time stays small. Autocast to bfloat16 is ignored on a CPU that cannot multiply it,
    and on a GPU, where cuDNN's LSTM would run in float16 instead (PyTorch's
    ATen/cudnn/AutocastRNN.cpp), too narrow for gradients that no loss scaler has multiplied.

    Args:
        layer: LSTM of one layer, time-major; in evaluation mode nothing is dropped.
        input: ``(T, B, E)``.
        state: ``(h, c)``, each ``(1, B, H)``.
        p: Probability that an element of the recurrent weight is dropped.

    Returns:
        Output ``(T, B, H)`` and the new state.
    """
    device_type = input.device.type
    if not _ignores_autocast(device_type):
        return _run(layer, input, state, p)
    hidden, cell = state
    dtype = layer.all_weights[0][0].dtype
    with torch.autocast(device_type, enabled=False):
        return _run(layer, input.to(dtype), (hidden.to(dtype), cell.to(dtype)), p)


def _ignores_autocast(device_type: str) -> bool:
    if device_type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device_type):
        return False
    if device_type == "cpu":
        return not multiplies_bfloat16()
    return torch.get_autocast_dtype(device_type) == torch.bfloat16


def _run(
    layer: nn.LSTM, input: Tensor, state: tuple[Tensor, Tensor], p: float
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    weights = None
    if layer.training and p > 0.0:
        input_weight, recurrent_weight, *biases = layer.all_weights[0]
        weights = [input_weight, drop_elements(recurrent_weight, p), *biases]
    outputs = []
    for part in input.chunk(_num_parts(layer, input)):
        if weights is None:
            output, state = layer(part, state)
        else:
            output, state = _lstm(part, state, weights)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), state


def _num_parts(layer: nn.LSTM, input: Tensor) -> int:
    if input.device.type != "cpu" or not torch.is_grad_enabled():
        return 1
    num_steps, batch_size, _ = input.shape
    gates_bytes = num_steps * batch_size * 4 * layer.hidden_size * input.element_size()
    return math.ceil(gates_bytes / GATES_BYTES)


def _lstm(
    input: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    # torch.lstm instead of a weight put into the layer, even for the length of a call: on a GPU
    # nn.LSTM would then move all its parameters to new memory, in place, at every forward pass.
    with warnings.catch_warnings():
        # cuDNN says that it copies the weights together, and that calling flatten_parameters()
        # would help. It cannot: the dropped weight is a new one each time.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
        output, hidden, cell = torch.lstm(
            input,
            state,
            weights,
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=True,
            bidirectional=False,
            batch_first=False,
        )
    return output, (hidden, cell)
