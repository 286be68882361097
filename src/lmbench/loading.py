"""A model that lies in a folder as plain PyTorch, without Lightning and Hydra.

The folder may come from a stranger: nothing that it holds is run, and no memory is taken for sizes
that its weights do not have.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor

from lmbench.checkpoint import corpus_of, read_checkpoint
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.model import LanguageModel
from lmbench.model_from_config import build_model
from lmbench.run_config import MODEL_TARGETS, read_run_config

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Loaded(NamedTuple):
    """A model and its words."""

    model: LanguageModel
    """In evaluation mode."""
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Saved:
    """What a folder holds of a model, before it is built.

    Attributes:
        config_path: the file that describes the model.
        model_config: what it says, as :func:`lmbench.model_from_config.build_model` takes it.
        weights_path: the file of the weights.
        weights: those to evaluate, by the names of ``LanguageModel.state_dict``.
        vocabulary: the words.
        corpus_sha256: hash of the corpus that the model was trained on.
    """

    config_path: Path
    model_config: dict[str, Any]
    weights_path: Path
    weights: dict[str, Tensor]
    vocabulary: Vocabulary
    corpus_sha256: str


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Loaded:
    """See :func:`lmbench.load`."""
    saved = read_run(Path(path))
    model = build(saved)
    try:
        return Loaded(model.to(device), saved.vocabulary)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: {str(error).splitlines()[0]}") from error


def read_run(run_dir: Path) -> Saved:
    """The best checkpoint of a run.

    Raises:
        UserError: the folder holds no run, or what is in it is damaged.
    """
    config: Any = OmegaConf.to_container(read_run_config(run_dir))
    path = run_dir / "checkpoints/best.ckpt"
    checkpoint = read_checkpoint(path)
    of_corpus = corpus_of(path, checkpoint)
    weights = {
        name.removeprefix("model."): tensor  # its name in the LightningModule
        for name, tensor in checkpoint["state_dict"].items()
    }
    model_config = config["model"]
    head = model_config.get("head")
    if isinstance(head, dict) and head.get("_target_") == "lmbench.model.head.Softmax":
        head.pop("kernel", None)  # of the loss in training; this machine may not have it
    return Saved(
        run_dir / "config.yaml",
        model_config,
        path,
        weights,
        vocabulary_of(of_corpus["words"], path),
        str(of_corpus["sha256"]),
    )


def vocabulary_of(words: object, path: Path) -> Vocabulary:
    """The vocabulary of a list of words that was read from a file.

    Raises:
        UserError: it is no list of different words.
    """
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} is damaged: its vocabulary is no list of words.")
    try:
        return Vocabulary(tuple(words))
    except ValueError as error:
        raise UserError(f"{path} is damaged: of its vocabulary, {error}.") from error


def build(saved: Saved) -> LanguageModel:
    """The model of a folder, in evaluation mode, in the precision of its weights.

    Raises:
        UserError: the weights do not fit the config or the vocabulary, or the config is no model's.
    """
    if all(_is_ours(saved.model_config.get(part), part) for part in ("core", "head")):
        with torch.device("meta"):  # takes no memory, whatever sizes the config names
            _require_fit(_untrained(saved), saved)
    model = _untrained(saved)
    _require_fit(model, saved)
    model.to(_precision(saved)).load_state_dict(saved.weights)
    return model.eval()


def _untrained(saved: Saved) -> LanguageModel:
    try:
        return build_model(saved.model_config, len(saved.vocabulary))
    except (UserError, RuntimeError, OverflowError) as error:  # torch's, of sizes that cannot be
        reason = str(error).splitlines()[0]
        raise UserError(f"{saved.config_path} describes no model: {reason}") from error


def _is_ours(node: Any, part: str) -> bool:
    """A part of the user's own may need numbers when it is made, and there are none on "meta"."""
    return isinstance(node, dict) and node.get("_target_") in MODEL_TARGETS[f"model.{part}"]


def _precision(saved: Saved) -> torch.dtype:
    dtypes = (weight.dtype for weight in saved.weights.values() if weight.is_floating_point())
    return next(dtypes, torch.float32)


def _require_fit(model: LanguageModel, saved: Saved) -> None:
    """Refuses weights that are not those of the model, name by name."""
    expected, found = model.state_dict(), saved.weights
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is none of the model's" for name in found if name not in expected]
    for name in [name for name in expected if name in found]:
        shapes = [tuple(tensors[name].shape) for tensors in (found, expected)]
        if shapes[0] != shapes[1]:
            problems.append(f"{name} has the shape {shapes[0]} instead of {shapes[1]}")
        dtype = _precision(saved) if expected[name].is_floating_point() else expected[name].dtype
        if found[name].dtype != dtype or (dtype.is_floating_point and dtype not in FLOATS):
            problems.append(f"{name} is of {found[name].dtype}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"The weights in {saved.weights_path} do not fit the model in {saved.config_path}: "
            f"{'; '.join(problems[:3])}{more}. Take both from the same run."
        )
