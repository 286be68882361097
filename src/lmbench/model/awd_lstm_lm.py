"""Weights of salesforce/awd-lstm-lm, by its names and by lmbench's.

The original saves a list of model, criterion and optimizer; the model's ``state_dict()`` is what
these functions take and give.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_RENAMED = {
    "encoder.weight": "embedding.weight",
    "decoder.weight": "head.weight",
    "decoder.bias": "head.bias",
}
_ORIGINAL_LAYER = re.compile(r"rnns\.(\d+)\.(?:module\.)?(weight|bias)_(ih|hh)_l0(?:_raw)?")
_LAYER = re.compile(r"core\.layers\.(\d+)\.(weight|bias)_(ih|hh)_l0")


def from_awd_lstm_lm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ``state_dict`` of the original model as one of :class:`LanguageModel` with AWDLSTM core.

    A dropped recurrent weight ``weight_hh_l0`` that stands beside the raw one is left out: it is
    only what the last forward pass made of it. Layers without weight dropout (``--wdrop 0``) have
    no raw weight, and keep the other.

    Args:
        state_dict: Names and tensors of the original; the tensors are passed on, not copied.

    Raises:
        ValueError: A name is none of the original LSTM model's.

    >>> import torch
    >>> list(from_awd_lstm_lm({"rnns.2.module.weight_hh_l0_raw": torch.zeros(1600, 400)}))
    ['core.layers.2.weight_hh_l0']
    """
    renamed = {}
    for name, tensor in state_dict.items():
        if f"{name}_raw" in state_dict:
            continue
        match = _ORIGINAL_LAYER.fullmatch(name)
        if match:
            layer, kind, side = match.groups()
            renamed[f"core.layers.{layer}.{kind}_{side}_l0"] = tensor
        elif name in _RENAMED:
            renamed[_RENAMED[name]] = tensor
        else:
            raise _unknown(name, "an LSTM of salesforce/awd-lstm-lm", _RENAMED)
    return renamed


def to_awd_lstm_lm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ``state_dict`` of :class:`LanguageModel` with AWDLSTM core as one of the original model.

    Args:
        state_dict: Names and tensors of ours; the tensors are passed on, not copied.

    Raises:
        ValueError: A name is none of such a model's.
    """
    originals = {ours: original for original, ours in _RENAMED.items()}
    renamed = {}
    for name, tensor in state_dict.items():
        match = _LAYER.fullmatch(name)
        if match:
            layer, kind, side = match.groups()
            raw = "_raw" if (kind, side) == ("weight", "hh") else ""
            renamed[f"rnns.{layer}.module.{kind}_{side}_l0{raw}"] = tensor
        elif name in originals:
            renamed[originals[name]] = tensor
        else:
            raise _unknown(name, "a LanguageModel with an LSTM core", originals)
    return renamed


def _unknown(name: str, of: str, known: Iterable[str]) -> ValueError:
    return ValueError(f"{name!r} is no parameter of {of}: those outside its layers are {[*known]}")
