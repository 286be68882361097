"""The corpus of a config, from plain values."""

from collections.abc import Mapping
from typing import Any

from lmbench.data.corpus import Corpus
from lmbench.data.tokenizer.choice import tokenizer_node
from lmbench.errors import UserError
from lmbench.instantiate.arguments import factory


def build_corpus(node: Mapping[str, Any]) -> Corpus:
    """The corpus that a config's ``data`` describes; ``tokenizer`` there is a node, or a name.

    Raises:
        UserError: A value is missing or wrong, or a file is.
    """
    if "tokenizer" in node:
        try:
            tokenizer = tokenizer_node(node["tokenizer"])
        except ValueError as error:
            raise UserError(f"data.{error}.") from error
        node = {**node, "tokenizer": factory(tokenizer, "data.tokenizer")()}
    return factory(node, "data")()
