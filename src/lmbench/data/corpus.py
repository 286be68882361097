"""A corpus: three streams of token ids and their vocabulary."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lmbench.data import hub
from lmbench.data.cache import load_or_build
from lmbench.data.tokenization import read_blocks, write_ids
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError

SPLITS = ("train", "valid", "test")
WIKITEXT2_COUNTS = {"train": 2_088_628, "valid": 217_646, "test": 245_569, "types": 33_278}
PENN_TREEBANK_COUNTS = {"train": 929_589, "valid": 73_760, "test": 82_430, "types": 10_000}
_WIKITEXT2 = "the word-level WikiText-2 (wikitext-2-v1, not the raw version)"
FORMAT = 1  # part of every cache key: raise it when the files of a cached corpus change


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids of the training, validation and test split, and the vocabulary they index.

    Args:
        name: ``wikitext2``, ``penn_treebank``, ``text`` or ``synthetic``.
        vocabulary: Id to word.
        train: 1-D int32 ids, kept read-only (and left on disk where they are memory-mapped).
        valid: Likewise.
        test: Likewise.
        perplexity_floor: Perplexity of the true distribution on ``valid`` and ``test``, where it
            is known.
        sha256: Hex SHA-256 of the words and the ids: of every word's UTF-8 bytes and a line feed,
            then of train, valid and test as little-endian int32. Computed if empty.

    Raises:
        ValueError: A split is not 1-D int32.
    """

    name: str
    vocabulary: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    perplexity_floor: Mapping[str, float] | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        for split in SPLITS:
            ids = getattr(self, split)
            if ids.ndim != 1 or ids.dtype != np.int32:
                raise ValueError(f"{split} must be 1-D int32, not {ids.ndim}-D {ids.dtype}")
            ids = ids.view()
            ids.flags.writeable = False
            object.__setattr__(self, split, ids)
        if not self.sha256:
            digest = hashlib.sha256()
            for word in self.vocabulary.words:
                digest.update(word.encode() + b"\n")
            for split in SPLITS:
                digest.update(np.ascontiguousarray(getattr(self, split), dtype="<i4").data)
            object.__setattr__(self, "sha256", digest.hexdigest())

    @property
    def num_tokens(self) -> dict[str, int]:
        """Number of tokens of each split, ``<eos>`` included."""
        return {split: len(getattr(self, split)) for split in SPLITS}

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {self.vocabulary!r}, num_tokens={self.num_tokens})"


def load_text(
    path: str | Path,
    *,
    name: str = "text",
    cache_dir: str | Path | None = None,
    min_count: int = 1,
    max_size: int | None = None,
) -> Corpus:
    """Load a corpus from a folder of UTF-8 text, one file a split.

    A line gives its words, as ``str.split`` finds them, and ``<eos>``; an empty line gives
    ``<eos>``. The vocabulary comes from the training split, ids in order of first appearance;
    other words of the other splits become ``<unk>``.

    Args:
        path: Folder with ``train.txt``, ``train.tokens``, ``wiki.train.tokens`` or
            ``ptb.train.txt``, and the same for ``valid`` and ``test``.
        name: Name of the corpus in results.
        cache_dir: Where the ids are kept, by content; ``$XDG_CACHE_HOME/lmbench`` or
            ``~/.cache/lmbench`` if None.
        min_count: Words that the training split has less often become ``<unk>``.
        max_size: Largest vocabulary, ``<eos>`` and ``<unk>`` included: the most frequent training
            words stay, the others become ``<unk>``. None for no limit.

    Raises:
        UserError: An option is out of range; a file is missing, ambiguous, empty or not UTF-8;
            there are unknown words and no ``<unk>``; the cache cannot be written.
    """
    if min_count < 1:
        raise UserError(f"data.min_count must be 1 or more, not {min_count}.")
    if max_size is not None and max_size < 2:
        raise UserError(f"data.max_size must be 2 (<eos> and <unk>) or more, not {max_size}.")
    files = _find_files(Path(path).expanduser())

    def read() -> dict[str, Iterable[bytes]]:
        return {split: read_blocks(file) for split, file in files.items()}

    def build(folder: Path) -> None:
        vocabulary = write_ids(
            folder, read(), source=str(path), min_count=min_count, max_size=max_size
        )
        _write_summary(folder, vocabulary)

    digest = hashlib.sha256(repr((FORMAT, min_count, max_size)).encode())
    for blocks in read().values():
        content = hashlib.sha256()
        for block in blocks:
            content.update(block)
        digest.update(content.digest())
    load = partial(_open, name=name)
    return load_or_build(digest.hexdigest(), load=load, build=build, cache_dir=cache_dir)


def load_wikitext2(
    path: str | Path | None = None, *, cache_dir: str | Path | None = None
) -> Corpus:
    """Load the word-level WikiText-2 of Merity et al. 2016 (arXiv 1609.07843).

    Args:
        path: Folder as ``load_text`` takes it. If None: ``$LMBENCH_DATA_DIR/wikitext-2`` where
            that variable is set, else the Hugging Face hub.
        cache_dir: See ``load_text``.

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
        corpus = load_text(path, name="wikitext2", cache_dir=cache_dir)
        _check_counts(corpus, str(path), WIKITEXT2_COUNTS, _WIKITEXT2)
        return corpus

    def build(folder: Path) -> None:
        source = f"{hub.REPOSITORY} ({hub.CONFIGURATION})"
        corpus = _write_summary(folder, write_ids(folder, hub.wikitext2_blocks(), source=source))
        _check_counts(corpus, source, WIKITEXT2_COUNTS, _WIKITEXT2)

    # By name, not content: the counts have been checked, and nobody asks the hub a second time.
    key = hashlib.sha256(repr((FORMAT, hub.REPOSITORY, hub.CONFIGURATION)).encode()).hexdigest()
    load = partial(_open, name="wikitext2")
    return load_or_build(key, load=load, build=build, cache_dir=cache_dir)


def load_penn_treebank(path: str | Path, *, cache_dir: str | Path | None = None) -> Corpus:
    """Load the Penn Treebank as Mikolov et al. 2010 prepared it: 10,000 types, no case, no digits.

    Args:
        path: Folder as ``load_text`` takes it.
        cache_dir: See ``load_text``.

    Raises:
        UserError: As for ``load_text``; the corpus has other numbers of tokens and types.
    """
    corpus = load_text(path, name="penn_treebank", cache_dir=cache_dir)
    _check_counts(corpus, str(path), PENN_TREEBANK_COUNTS, "the word-level Penn Treebank")
    return corpus


def _find_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(
            f"{folder} {problem}. Set data.path=… to a folder with train.txt, valid.txt, test.txt."
        )
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    files = {}
    for split in SPLITS:
        prefixes = {"": ("txt", "tokens"), "wiki.": ("tokens",), "ptb.": ("txt",)}
        wanted = [f"{prefix}{split}.{end}" for prefix, ends in prefixes.items() for end in ends]
        found = [name for name in wanted if name in names]
        if not found:
            raise UserError(
                f"{folder} has no {split} split: looked for {', '.join(wanted)}; there is "
                f"{', '.join(names[:10]) or 'nothing'}{', …' if len(names) > 10 else ''}. "
                "Add the file, or set data.path=… to another folder."
            )
        if len(found) > 1:
            raise UserError(
                f"{folder} has {' and '.join(found)} for one split. Take one of them away."
            )
        files[split] = folder / found[0]
    return files


def _write_summary(folder: Path, vocabulary: Vocabulary) -> Corpus:
    splits = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS}
    corpus = Corpus("", vocabulary, **splits)
    summary = {
        "sha256": corpus.sha256,
        "num_tokens": corpus.num_tokens,
        "words": vocabulary.words,
    }
    (folder / "corpus.json").write_text(json.dumps(summary), encoding="utf-8")
    return corpus


def _open(folder: Path, name: str) -> Corpus | None:
    """The corpus in a folder of the cache, or None if it is not there whole."""
    try:
        summary = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        splits = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS}
        vocabulary = Vocabulary(tuple(summary["words"]))
        corpus = Corpus(name, vocabulary, **splits, sha256=summary["sha256"])
        whole = corpus.num_tokens == summary["num_tokens"]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return corpus if whole else None


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
