"""PyTorch's own recurrent layers. Shape letters: T time steps, B columns, E embedding, H hidden."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

GATES_BYTES = 64 * 2**20


class LSTMLayer(nn.LSTM):
    """An LSTM layer; its state is ``(h, c)``, each ``(1, B, H)``."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Float[Tensor, "T B E"],
        state: Sequence[Float[Tensor, "1 B H"]] | None = None,
        weight_dropout: Callable[[Tensor], Tensor] = lambda weight: weight,
    ) -> tuple[Float[Tensor, "T B H"], tuple[Float[Tensor, "1 B H"], ...]]:
        """Runs a window, from ``state`` or from zeros."""
        if state is None:
            state = [input.new_zeros(1, input.shape[1], self.hidden_size)] * 2
        return run_rnn(torch.lstm, self, input, state, weight_dropout(self.all_weights[0][1]))


class GRULayer(nn.GRU):
    """A GRU layer; its state is ``(h,)``, ``(1, B, H)``."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Float[Tensor, "T B E"],
        state: Sequence[Float[Tensor, "1 B H"]] | None = None,
        weight_dropout: Callable[[Tensor], Tensor] = lambda weight: weight,
    ) -> tuple[Float[Tensor, "T B H"], tuple[Float[Tensor, "1 B H"], ...]]:
        """Runs a window, from ``state`` or from zeros."""
        if state is None:
            state = [input.new_zeros(1, input.shape[1], self.hidden_size)]
        return run_rnn(torch.gru, self, input, state, weight_dropout(self.all_weights[0][1]))


def run_rnn(
    kernel: Callable[..., tuple[Tensor, ...]],
    layer: nn.RNNBase,
    input: Float[Tensor, "T B E"],
    state: Sequence[Float[Tensor, "1 B H"]],
    recurrent_weight: Float[Tensor, "G H"],
) -> tuple[Float[Tensor, "T B H"], tuple[Float[Tensor, "1 B H"], ...]]:
    """Runs a single PyTorch layer, with the same recurrent weight at all time steps.

    With a weight from :class:`lmbench.model.dropout.WeightDropout`, an LSTM is that of AWD-LSTM.

    On a CPU a long window is run in parts, one after the other, so that what the backward pass
    needs at any time stays small. On a GPU autocast to bfloat16 is ignored: cuDNN's layers would
    run in float16 instead (PyTorch's ATen/cudnn/AutocastRNN.cpp), too narrow for gradients that no
    loss scaler has multiplied.

    Args:
        kernel: ``torch.lstm`` or ``torch.gru``.
        layer: ``nn.LSTM`` or ``nn.GRU`` of one layer, time-major.
        input: ``(T, B, E)``.
        state: ``(h, c)`` of an LSTM, ``(h,)`` of a GRU, each ``(1, B, H)``.
        recurrent_weight: Used for ``layer.weight_hh_l0``, or that weight itself; ``(G, H)``, where
            G is 4H for an LSTM and 3H for a GRU.

    Returns:
        Output ``(T, B, H)`` and the new state.
    """
    if _becomes_float16(input.device.type):
        dtype = recurrent_weight.dtype
        with torch.autocast(input.device.type, enabled=False):
            state = [tensor.to(dtype) for tensor in state]
            return run_rnn(kernel, layer, input.to(dtype), state, recurrent_weight)
    # The kernel is called directly: with the weight put into the layer, even for one call, on a GPU
    # the layer would move all its parameters to new memory, in place, at every forward pass.
    input_weight, _, *biases = layer.all_weights[0]
    state = [tensor.to(input.dtype) for tensor in state]  # a resumed run's may be wider
    outputs = []
    with _without_cudnns_warning() if input.is_cuda else nullcontext():
        for part in input.chunk(_num_parts(layer, input)):
            output, *state = kernel(
                part,
                tuple(state) if len(state) > 1 else state[0],
                [input_weight, recurrent_weight, *biases],
                has_biases=True,
                num_layers=1,
                dropout=0.0,
                train=layer.training,
                bidirectional=False,
                batch_first=False,
            )
            outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs), tuple(state)


@contextmanager
def _without_cudnns_warning() -> Iterator[None]:
    """Ignores cuDNN's warning that it gathers the weights in one place at each call.

    flatten_parameters(), which it suggests, cannot help: weight dropout makes a new weight each
    time. Not on a CPU, where this would make Python show any other warning again at each call.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
        yield


def _becomes_float16(device_type: str) -> bool:
    if device_type != "cuda" or not torch.is_autocast_enabled(device_type):
        return False
    return torch.get_autocast_dtype(device_type) == torch.bfloat16


def _num_parts(layer: nn.RNNBase, input: Tensor) -> int:
    if input.device.type != "cpu" or not torch.is_grad_enabled():
        return 1
    num_steps, batch_size, _ = input.shape
    gates_bytes = num_steps * batch_size * 4 * layer.hidden_size * input.element_size()
    return math.ceil(gates_bytes / GATES_BYTES)
