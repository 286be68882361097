"""Tokenizers by name, as plain values, and for the texts that a model reads."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from lmbench.data.tokenizer.contract import Tokenizer
from lmbench.data.vocabulary import Vocabulary
from lmbench.files import read_yaml
from lmbench.run.targets import conf_files, import_target, require_known_targets


def make_tokenizer(choice: object, where: str = "tokenizer") -> Tokenizer:
    """A tokenizer from plain values.

    Args:
        choice: A config node; or the name of a file in ``conf/data/tokenizer``, as command lines,
            old runs and old exports have it. ``moses-de`` is ``moses`` with ``language: de``.
        where: The file that the node comes from, for errors.

    Raises:
        ValueError: There is no such tokenizer, or it refuses a value.
        UserError: The class is not known.
    """
    if isinstance(choice, Mapping):
        require_known_targets({"data": {"tokenizer": choice}}, ["data.tokenizer"], where)
        arguments = {key: value for key, value in choice.items() if key != "_target_"}
        return import_target(choice["_target_"])(**arguments)
    known = {path.stem: path for path in reversed(conf_files("data/tokenizer"))}
    name, hyphen, language = str(choice).partition("-")
    node = read_yaml(known[name]) if name in known else {}
    if not node or (hyphen and "language" not in node):
        raise ValueError(f"tokenizer must be one of {', '.join(sorted(known))}, not {choice!r}")
    return make_tokenizer(node | ({"language": language} if hyphen else {}))


def plain_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The node of a tokenizer, to be saved.

    >>> from lmbench.data.tokenizer.moses import Moses
    >>> plain_tokenizer(Moses("de"))
    {'_target_': 'lmbench.data.tokenizer.moses.Moses', 'language': 'de'}
    """
    kind, fields = type(tokenizer), asdict(cast(Any, tokenizer))
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **fields}


def tokenizer_for(vocabulary: Vocabulary, choice: str | None = None) -> Tokenizer:
    """The tokenizer of texts that a model with a vocabulary reads.

    Args:
        vocabulary: The vocabulary.
        choice: A name, such as ``auto``, which is for raw text: see
            :meth:`lmbench.data.tokenizer.auto.Auto.fit_vocabulary`. None for the tokenizer of the
            training text; if that came with its words separated, it cuts at white space.

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
