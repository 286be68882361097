"""Tokenizers by name, as plain values, and for the texts that a model reads."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lmbench.data.tokenizer.contract import Tokenizer
from lmbench.data.vocabulary import Vocabulary
from lmbench.files import read_yaml
from lmbench.run.targets import conf_dir, import_target, require_known_targets

PLACE = "data.tokenizer"
"""Where a config has it; see :data:`lmbench.run.targets.PLACES`."""


def tokenizer_node(choice: object) -> dict[str, Any]:
    """The config node of a tokenizer.

    Args:
        choice: A node, or the name of a file in ``conf/data/tokenizer``. ``moses-de`` is ``moses``
            with ``language: de``. Command lines give names, and so do old runs and exports.

    Raises:
        ValueError: There is no such file.
    """
    if isinstance(choice, Mapping):
        return dict(choice)
    known = {path.stem: path for path in sorted((conf_dir() / "data/tokenizer").glob("*.yaml"))}
    name, hyphen, language = str(choice).partition("-")
    node = read_yaml(known[name]) if name in known else {}
    if not node or (hyphen and "language" not in node):
        raise ValueError(f"tokenizer must be one of {', '.join(known)}, not {choice!r}")
    return node | ({"language": language} if hyphen else {})


def make_tokenizer(choice: object, where: str = "tokenizer") -> Tokenizer:
    """The tokenizer of a choice as :func:`tokenizer_node` takes it.

    Args:
        choice: The choice.
        where: The file that it comes from, for errors.

    Raises:
        ValueError: There is no such tokenizer, or it does not take a value.
        UserError: The class is not known.
    """
    node = tokenizer_node(choice)
    require_known_targets({"data": {"tokenizer": node}}, [PLACE], where)
    return import_target(node.pop("_target_"))(**node)


def plain_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The node of a tokenizer, to be saved.

    >>> from lmbench.data.tokenizer.moses import Moses
    >>> plain_tokenizer(Moses("de"))
    {'_target_': 'lmbench.data.tokenizer.moses.Moses', 'language': 'de'}
    """
    kind: Any = type(tokenizer)
    instance: Any = tokenizer
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **asdict(instance)}


def tokenizer_for(vocabulary: Vocabulary, choice: str | None = None) -> Tokenizer:
    """The tokenizer of texts that a model reads.

    Args:
        vocabulary: The model's vocabulary.
        choice: A tokenizer's name; None for that of the training text, which cuts at white space if
            that came with its words separated, as WikiText-2 does. ``auto`` is for raw text: see
            :meth:`lmbench.data.tokenizer.auto.Auto.fit_vocabulary`.

    Raises:
        ValueError: There is no such tokenizer.
    """
    if choice is None:
        return vocabulary.tokenizer
    return make_tokenizer(choice).fit_vocabulary(vocabulary)


def cut_continuation(tokenizer: Tokenizer, context: str, text: str) -> tuple[list[str], list[str]]:
    """The pieces of a context, and those with which a text continues it.

    They are cut together, as they would be in one text, unless a piece spans the place where they
    meet: then each is cut alone.
    """
    before, pieces = tokenizer.cut(context), tokenizer.cut(context + text)
    if pieces[: len(before)] == before:
        return before, pieces[len(before) :]
    return before, tokenizer.cut(text)
