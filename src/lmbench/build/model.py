"""Language models: untrained, from a config's ``model``, and saved ones, from a folder."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lmbench.build.arguments import call, factory
from lmbench.conf import MODEL_PLACES, known_targets, takes
from lmbench.data.vocabulary import count_words
from lmbench.errors import UserError
from lmbench.model import Embedding, LanguageModel
from lmbench.saved.checkpoint import FLOATS, SavedModel


def build_model(
    node: Mapping[str, Any], vocabulary_size: int, train_ids: np.ndarray | None = None
) -> LanguageModel:
    """The untrained language model that a config's ``model`` describes.

    Args:
        node: ``embedding_size``, ``embedding_dropout``, ``tied``, and ``core`` and ``head``, each
            with a ``_target_`` and its arguments; and the model's ``name``.
        vocabulary_size: Number of words.
        train_ids: The training split, for heads that order the words by frequency. Not needed if
            weights are loaded afterwards, since these include the order.

    Raises:
        UserError: A value is missing, has the wrong type, or does not fit the others.
    """

    def build(
        name: str = "",
        *,
        embedding_size: int,
        embedding_dropout: float,
        tied: bool,
        core: object,
        head: object,
    ) -> LanguageModel:
        embedding = call(
            Embedding,
            "model",
            vocabulary_size=vocabulary_size,
            embedding_size=embedding_size,
            dropout=embedding_dropout,
        )
        of_corpus = {}
        made_core = factory(core, "model.core")(input_size=embedding_size)
        make_head = factory(head, "model.head")
        if train_ids is not None and takes(node["head"], "counts"):
            of_corpus["counts"] = count_words(train_ids, vocabulary_size)
        made_head = make_head(
            input_size=made_core.output_size, vocabulary_size=vocabulary_size, **of_corpus
        )
        return call(LanguageModel, "model", embedding, made_core, made_head, tied=tied)

    return call(build, "model", **node)


def build_saved(saved: SavedModel) -> LanguageModel:
    """The model of a folder, in evaluation mode, in the precision of its weights.

    Raises:
        UserError: The weights do not fit the config or the vocabulary, or the config does not
            describe a model.
    """
    require_fit(saved)
    model = _untrained(saved)
    _require_same_shapes(model, saved)
    try:  # not strict: a tied weight has two names, and may be saved under one
        model.to(_precision(saved)).load_state_dict(saved.weights, strict=False)
    except RuntimeError as error:  # what a head refuses
        reason = " ".join(str(error).split())
        raise UserError(f"The weights in {saved.weights_path} do not fit: {reason}") from error
    return model.eval()


def require_fit(saved: SavedModel) -> None:
    """Refuses a folder whose config does not describe its weights, without taking memory for it.

    Raises:
        UserError: Naming what does not fit.
    """
    targets = {place: saved.model_config.get(place.partition(".")[2]) for place in MODEL_PLACES}
    if not all(
        isinstance(node, Mapping) and node.get("_target_") in known_targets(place)
        for place, node in targets.items()
    ):
        return  # the user's own part may need numbers when it is made: "meta" has none
    num_layers = saved.model_config["core"].get("num_layers")
    if isinstance(num_layers, int) and num_layers > len(saved.weights):
        # Even without memory, making them would take hours.
        raise UserError(
            f"{saved.config_path}: model.core.num_layers asks for more layers than there are "
            f"weights in {saved.weights_path}, {len(saved.weights)}. Take both from the same run."
        )
    with torch.device("meta"):
        _require_same_shapes(_untrained(saved), saved)


def _untrained(saved: SavedModel) -> LanguageModel:
    try:
        return build_model(saved.model_config, len(saved.vocabulary))
    except (UserError, RuntimeError, OverflowError) as error:  # torch's, about impossible sizes
        reason = str(error).splitlines()[0]
        raise UserError(f"{saved.config_path} does not describe a model: {reason}") from error


def _precision(saved: SavedModel) -> torch.dtype:
    weight = saved.weights.get("embedding.weight")
    return torch.float32 if weight is None or weight.dtype not in FLOATS else weight.dtype


def _require_same_shapes(model: LanguageModel, saved: SavedModel) -> None:
    """Refuses weights that are not those of the model, name by name."""
    expected, found = model.state_dict(keep_vars=True), saved.weights
    there = {id(expected[name]) for name in found if name in expected}
    problems = [f"{name} is missing" for name in expected if id(expected[name]) not in there]
    problems += [f"the model has no {name}" for name in found if name not in expected]
    for name in [name for name in expected if name in found]:
        shapes = [tuple(tensors[name].shape) for tensors in (found, expected)]
        if shapes[0] != shapes[1]:
            problems.append(f"{name} has the shape {shapes[0]} instead of {shapes[1]}")
        dtype = _precision(saved) if expected[name].is_floating_point() else expected[name].dtype
        if found[name].dtype != dtype or dtype.is_complex:  # whose imaginary parts would be lost
            problems.append(f"{name} has dtype {found[name].dtype}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        is_written = saved.config_path.exists()  # not yet, if a run starts from another's weights
        config = saved.config_path if is_written else "this command's config"
        remedy = "Take both from the same run" if is_written else "Keep the model's sizes"
        raise UserError(
            f"The weights in {saved.weights_path} do not fit the model in {config}: "
            f"{'; '.join(problems[:3])}{more}. {remedy}."
        )
