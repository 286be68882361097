"""A language model from the plain values of a config's ``model``: the one way of building it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmbench.data.vocabulary import count_words
from lmbench.errors import UserError
from lmbench.from_config.arguments import call, factory, takes
from lmbench.model import Embedding, LanguageModel


def build_model(
    node: Mapping[str, Any], vocabulary_size: int, train_ids: np.ndarray | None = None
) -> LanguageModel:
    """The language model that a config's ``model`` describes.

    Args:
        node: ``embedding_size``, ``embedding_dropout``, ``tied``, and ``core`` and ``head``, each
            with a ``_target_`` and its arguments.
        vocabulary_size: Number of words.
        train_ids: The training split, for heads that order the words by frequency. Not needed if
            weights are loaded afterwards, which have the order among them.

    Raises:
        UserError: A value is missing, has the wrong type, or does not fit the others.
    """
    for name in ("embedding_size", "embedding_dropout", "tied", "core", "head"):
        if name not in node:
            raise UserError(f"model.{name} is missing.")
    embedding = call(
        Embedding,
        "model",
        vocabulary_size=vocabulary_size,
        embedding_size=node["embedding_size"],
        dropout=node["embedding_dropout"],
    )
    core = factory(node["core"], "model.core")(input_size=node["embedding_size"])
    make_head = factory(node["head"], "model.head")
    of_corpus = {}
    if train_ids is not None and takes(node["head"], "counts"):
        of_corpus["counts"] = count_words(train_ids, vocabulary_size)
    head = make_head(input_size=core.output_size, vocabulary_size=vocabulary_size, **of_corpus)
    return call(LanguageModel, "model", embedding, core, head, tied=node["tied"])
