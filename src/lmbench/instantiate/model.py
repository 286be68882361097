"""Language models: untrained, from a config's ``model``, and saved ones, from a folder."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmbench.data.vocabulary import count_words
from lmbench.errors import UserError
from lmbench.instantiate.arguments import call, factory
from lmbench.model import Embedding, LanguageModel
from lmbench.model.contracts import Core
from lmbench.model.head import Head
from lmbench.run.targets import takes
from lmbench.saved.checkpoint import SavedModel, load_weights


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

    def language_model(
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
            {"embedding_size": embedding_size, "dropout": embedding_dropout},
            vocabulary_size=vocabulary_size,
        )
        from_corpus = {}
        made_core = factory(core, "model.core")(input_size=embedding_size)
        _require_members(made_core, Core, "model.core")
        make_head = factory(head, "model.head")
        if train_ids is not None and takes(node["head"], "counts"):
            from_corpus["counts"] = count_words(train_ids, vocabulary_size)
        made_head = make_head(
            input_size=made_core.output_size, vocabulary_size=vocabulary_size, **from_corpus
        )
        _require_members(made_head, Head, "model.head")
        return call(LanguageModel, "model", {"tied": tied}, embedding, made_core, made_head)

    return call(language_model, "model", node)


def _require_members(part: object, contract: type, key: str) -> None:
    """Refuses a core or head that lacks what the rest of lmbench reads.

    Raises:
        UserError: Naming what it lacks.
    """
    members = {*vars(contract), *contract.__annotations__}
    members = sorted(name for name in members if not name.startswith("_"))
    if lacking := [name for name in members if not hasattr(part, name)]:
        raise UserError(
            f"{key}: {type(part).__name__} lacks {', '.join(lacking)}. "
            f"{contract.__module__}.{contract.__name__} lists what it must have."
        )


def build_saved(saved: SavedModel) -> LanguageModel:
    """The model of a folder, in evaluation mode, in the precision of its weights.

    Raises:
        UserError: The config does not describe a model, or not one with these weights.
    """
    try:
        model = build_model(saved.model_config, len(saved.vocabulary))
        if (weight := saved.weights.get("embedding.weight")) is not None:
            model.to(weight.dtype)
        load_weights(model, saved.weights, saved.weights_path)
    except UserError as error:
        raise UserError(f"{saved.config_path}: {error}") from error
    return model.eval()
