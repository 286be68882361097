"""A model as it lies in a folder, and how it is built from that.

The folder may come from a stranger: no memory is taken for sizes that its weights do not have.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.from_config.model import build_model
from lmbench.model import AdaptiveSoftmax, LanguageModel
from lmbench.run.targets import MODEL_TARGETS
from lmbench.saved.checkpoint import FLOATS


@dataclass(frozen=True)
class SavedModel:
    """What a folder holds of a model, before it is built.

    Attributes:
        config_path: The file that describes the model.
        model_config: Its content, as :func:`lmbench.from_config.model.build_model` takes it.
        weights_path: The file of the weights.
        weights: Weights to evaluate, by the names of ``LanguageModel.state_dict``; of a tied
            weight's names, one is enough.
        vocabulary: The words.
        corpus_sha256: Hash of the corpus that the model was trained on.
    """

    config_path: Path
    model_config: dict[str, Any]
    weights_path: Path
    weights: dict[str, Tensor]
    vocabulary: Vocabulary
    corpus_sha256: str


def vocabulary_of(words: object, path: Path) -> Vocabulary:
    """The vocabulary of a list of words that was read from a file.

    Raises:
        UserError: ``words`` is no list of different words.
    """
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} is damaged: its vocabulary is no list of words.")
    try:
        "".join(words).encode()  # JSON has a way of writing halves of letters
        return Vocabulary(tuple(words))
    except ValueError as error:
        raise UserError(f"{path} is damaged: of its vocabulary, {error}.") from error


def build(saved: SavedModel) -> LanguageModel:
    """The model of a folder, in evaluation mode, in the precision of its weights.

    Raises:
        UserError: The weights do not fit the config or the vocabulary, or the config is no model's.
    """
    if all(_is_ours(saved.model_config.get(part), part) for part in ("core", "head")):
        _require_layers(saved)
        with torch.device("meta"):  # takes no memory, whatever sizes the config names
            _require_fit(_untrained(saved), saved)
    model = _untrained(saved)
    _require_fit(model, saved)
    # Not strict: a tied weight has two names, and may come under one.
    model.to(_precision(saved)).load_state_dict(saved.weights, strict=False)
    return model.eval()


def _untrained(saved: SavedModel) -> LanguageModel:
    try:
        return build_model(saved.model_config, len(saved.vocabulary))
    except (UserError, RuntimeError, OverflowError) as error:  # torch's, of sizes that cannot be
        reason = str(error).splitlines()[0]
        raise UserError(f"{saved.config_path} describes no model: {reason}") from error


def _is_ours(node: Any, part: str) -> bool:
    """A part of the user's own may need numbers when it is made, and there are none on "meta"."""
    return isinstance(node, dict) and node.get("_target_") in MODEL_TARGETS[f"model.{part}"]


def _require_layers(saved: SavedModel) -> None:
    """Refuses more layers than there are weights for: even without memory they would take hours."""
    num_layers = saved.model_config["core"].get("num_layers")
    if isinstance(num_layers, int) and num_layers > len(saved.weights):
        raise UserError(
            f"{saved.config_path}: model.core.num_layers asks for more layers than there are "
            f"weights in {saved.weights_path}, {len(saved.weights)}. Take both from the same run."
        )


def _precision(saved: SavedModel) -> torch.dtype:
    weight = saved.weights.get("embedding.weight")
    return torch.float32 if weight is None or weight.dtype not in FLOATS else weight.dtype


def _require_fit(model: LanguageModel, saved: SavedModel) -> None:
    """Refuses weights that are not those of the model, name by name."""
    expected, found = model.state_dict(keep_vars=True), saved.weights
    there = {id(expected[name]) for name in found if name in expected}
    problems = [f"{name} is missing" for name in expected if id(expected[name]) not in there]
    problems += [f"{name} is none of the model's" for name in found if name not in expected]
    for name in [name for name in expected if name in found]:
        shapes = [tuple(tensors[name].shape) for tensors in (found, expected)]
        if shapes[0] != shapes[1]:
            problems.append(f"{name} has the shape {shapes[0]} instead of {shapes[1]}")
        dtype = _precision(saved) if expected[name].is_floating_point() else expected[name].dtype
        if found[name].dtype != dtype or dtype.is_complex:  # whose imaginary parts would be lost
            problems.append(f"{name} is of {found[name].dtype}")
    if isinstance(model.head, AdaptiveSoftmax) and not problems:
        ranks = found["head.word_ranks"].sort().values
        if not torch.equal(ranks, torch.arange(len(ranks), device="cpu")):
            problems.append("head.word_ranks is no order of the words")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"The weights in {saved.weights_path} do not fit the model in {saved.config_path}: "
            f"{'; '.join(problems[:3])}{more}. Take both from the same run."
        )
