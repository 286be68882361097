"""Published corpora, checked against their published counts."""

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lmbench.data import hub
from lmbench.data.cache import load_or_build
from lmbench.data.corpus import FORMAT, Corpus, load_text, open_corpus, write_summary
from lmbench.data.tokenization import write_ids
from lmbench.errors import UserError

WIKITEXT2_COUNTS = {"train": 2_088_628, "valid": 217_646, "test": 245_569, "types": 33_278}
PENN_TREEBANK_COUNTS = {"train": 929_589, "valid": 73_760, "test": 82_430, "types": 10_000}
_WIKITEXT2 = "the word-level WikiText-2 (wikitext-2-v1, not the raw version)"


def load_wikitext2(
    path: str | Path | None = None,
    *,
    cache_dir: str | Path | None = None,
    verify: bool = False,
) -> Corpus:
    """Loads the word-level WikiText-2 of Merity et al. 2016 (arXiv 1609.07843).

    Args:
        path: Folder as ``load_text`` takes it. If None: ``$LMBENCH_DATA_DIR/wikitext-2`` where
            that variable is set, else the Hugging Face hub.
        cache_dir: See ``load_text``.
        verify: See ``load_text``.

    Raises:
        UserError: As for ``load_text``; the hub cannot be reached; the corpus has other numbers of
            tokens and types than the published one.
    """
    data_dir = os.environ.get("LMBENCH_DATA_DIR")
    if path is None and data_dir:
        path = Path(data_dir).expanduser() / "wikitext-2"
        if not path.is_dir():
            raise UserError(
                f"LMBENCH_DATA_DIR is {data_dir}, but there is no folder {path}. Put WikiText-2 "
                "there, set data.path=… to where it is, or unset the variable to get it from the "
                "Hugging Face hub."
            )
    if path is not None:
        corpus = load_text(path, name="wikitext2", cache_dir=cache_dir, verify=verify)
        _check_counts(corpus, str(path), WIKITEXT2_COUNTS, _WIKITEXT2)
        return corpus

    def build(folder: Path) -> None:
        source = f"{hub.REPOSITORY} ({hub.CONFIGURATION})"
        corpus = write_summary(folder, write_ids(folder, hub.wikitext2_blocks(), source=source))
        _check_counts(corpus, source, WIKITEXT2_COUNTS, _WIKITEXT2)

    # By name, not content: the counts have been checked, and nobody asks the hub a second time.
    key = hashlib.sha256(repr((FORMAT, hub.REPOSITORY, hub.CONFIGURATION)).encode()).hexdigest()
    load = partial(open_corpus, name="wikitext2", verify=verify)
    return load_or_build(key, load=load, build=build, cache_dir=cache_dir)


def load_penn_treebank(
    path: str | Path, *, cache_dir: str | Path | None = None, verify: bool = False
) -> Corpus:
    """Loads the Penn Treebank as Mikolov et al. 2010 prepared it: 10,000 types, no case, no digits.

    Args:
        path: Folder as ``load_text`` takes it.
        cache_dir: See ``load_text``.
        verify: See ``load_text``.

    Raises:
        UserError: As for ``load_text``; the corpus has other numbers of tokens and types.
    """
    corpus = load_text(path, name="penn_treebank", cache_dir=cache_dir, verify=verify)
    _check_counts(corpus, str(path), PENN_TREEBANK_COUNTS, "the word-level Penn Treebank")
    return corpus


def _check_counts(corpus: Corpus, source: str, expected: Mapping[str, int], what: str) -> None:
    found = {**corpus.num_tokens, "types": len(corpus.vocabulary)}
    if found == expected:
        return

    def describe(counts: Mapping[str, int]) -> str:
        return "{train:,} / {valid:,} / {test:,} tokens and {types:,} types".format(**counts)

    raise UserError(
        f"{source} is not {what}: it has {describe(found)}, expected {describe(expected)}. For "
        "another corpus use data=text with data.path=…"
    )
