"""Renames weights of salesforce/awd-lstm-lm to lmbench's names, and back.

    python scripts/awd_lstm_lm.py WEIGHTS CONVERTED [--back]

Both are files of ``torch.save(model.state_dict(), path)``. The original saves a list of model,
criterion and optimizer instead (``WT2.pt``), which only its own code can read: save the
``state_dict()`` of the first there. ``lmbench.load(RUN_DIR)`` gives the model of an lmbench run.
``CONVERTED`` is for the ``load_state_dict`` of a model of the same sizes.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

_RENAMED = {
    "encoder.weight": "embedding.weight",
    "decoder.weight": "head.weight",
    "decoder.bias": "head.bias",
}
_ORIGINAL_LAYER = re.compile(r"rnns\.(\d+)\.(?:module\.)?(weight|bias)_(ih|hh)_l0(?:_raw)?")
_LAYER = re.compile(r"core\.layers\.(\d+)\.(weight|bias)_(ih|hh)_l0")


def from_awd_lstm_lm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ``state_dict`` of the original model as one of ``LanguageModel`` with an AWDLSTM core.

    A recurrent weight ``weight_hh_l0`` after dropout, beside the raw one, is left out: it is only
    what the last forward pass made of the raw one. Layers without weight dropout (``--wdrop 0``)
    have no raw weight, and keep the other.

    Args:
        state_dict: Names and tensors of the original; the tensors are passed on, not copied.

    Raises:
        ValueError: A name is not one of the original LSTM model's.
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
    """A ``state_dict`` of ``LanguageModel`` with an AWDLSTM core as one of the original model.

    Args:
        state_dict: Names and tensors of ours; the tensors are passed on, not copied.

    Raises:
        ValueError: A name is not one of such a model's.
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
    return ValueError(
        f"{name!r} is not a parameter of {of}: those outside its layers are {[*known]}"
    )


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Weights of salesforce/awd-lstm-lm in lmbench.")
    parser.add_argument("weights", type=Path, help="file with the state_dict to rename")
    parser.add_argument("converted", type=Path, help="file to write")
    parser.add_argument("--back", action="store_true", help="from lmbench to the original")
    options = parser.parse_args(arguments)
    rename = to_awd_lstm_lm if options.back else from_awd_lstm_lm
    try:
        state_dict = torch.load(options.weights, map_location="cpu", weights_only=True)
        renamed = rename(state_dict)
    except (OSError, EOFError, ValueError, RuntimeError, AttributeError, UnpicklingError) as error:
        sys.exit(f"{options.weights}: {str(error) or 'The file is cut short.'}")
    try:
        torch.save(renamed, options.converted)
    except (OSError, RuntimeError) as error:
        sys.exit(f"{options.converted}: {error}")


if __name__ == "__main__":
    main()
