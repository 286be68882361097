"""A corpus: three streams of token ids and their vocabulary."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from lmbench.data.disk_cache import load_or_build
from lmbench.data.documents import joined, split_documents
from lmbench.data.text_files import find_files
from lmbench.data.tokenization import SPLITS, read_blocks, write_ids
from lmbench.data.vocabulary import UNK, Vocabulary
from lmbench.data.words import NONE, require_tokenizer, separate, version_of
from lmbench.errors import UserError

SHARE = 0.05
"""Default fraction of a text without splits that becomes ``valid``, and ``test``."""

FORMAT = 11  # part of every cache key: raise it when the files of a cached corpus change


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids of the training, validation and test splits, and the vocabulary they index.

    Args:
        name: What results call it, such as ``wikitext2``, ``text`` or ``synthetic``.
        vocabulary: Id to word.
        train: 1-D int32 ids, which may lie on disk.
        valid: The same for the validation split.
        test: The same for the test split.
        perplexity_floor: Perplexity of the true distribution on ``valid`` and ``test``, if known.
        notes: Notes for people on how these streams were made from a text: a sentence each.
    """

    name: str
    vocabulary: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    perplexity_floor: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the words, each with a line feed, then of the ids as little-endian int32.

        Words are UTF-8; the ids are those of train, valid and test.
        """
        digest = hashlib.sha256("".join(f"{word}\n" for word in self.vocabulary.words).encode())
        for split in SPLITS:
            digest.update(np.ascontiguousarray(getattr(self, split), dtype="<i4").data)
        return digest.hexdigest()

    @property
    def num_tokens(self) -> dict[str, int]:
        """Number of tokens of each split, ``<eos>`` included."""
        return {split: len(getattr(self, split)) for split in SPLITS}

    def require_sha256(self, sha256: object) -> None:
        """Refuses a checkpoint of another corpus.

        Raises:
            UserError: The hashes differ.
        """
        if sha256 != self.sha256:
            raise UserError(
                f"The checkpoint was trained on a corpus with sha256 {sha256}, but the corpus "
                f"{self.name!r} given here has {self.sha256}. Use the same corpus and the same "
                "vocabulary options as in the run's config.yaml."
            )


def load_text(
    path: str | Path,
    *,
    name: str = "text",
    cache_dir: str | Path | None = None,
    tokenizer: str = NONE,
    min_count: int | None = None,
    max_size: int | None = None,
    valid_share: float = SHARE,
    test_share: float = SHARE,
) -> Corpus:
    """Loads a corpus from UTF-8 text.

    A line gives its words and ``<eos>``; an empty line gives ``<eos>``. The vocabulary comes from
    the training split, ids in order of first appearance; other words of the other splits become
    ``<unk>``.

    Args:
        path: A folder with ``train.txt``, ``train.tokens``, ``wiki.train.tokens`` or
            ``ptb.train.txt``, and the same for ``valid`` and ``test``; or a file, or a folder of
            other ``.txt`` files, which may be in subfolders; :mod:`lmbench.data.documents` splits
            these.
        name: Name of the corpus in results.
        cache_dir: Where the ids are cached, by content; see ``load_or_build``.
        tokenizer: What splits a line into words: ``none`` for ``str.split``, ``moses`` for running
            text (:mod:`lmbench.data.words`); ``auto`` for ``none`` if the training text has
            ``<unk>``, as prepared corpora do, else ``moses``.
        min_count: Words rarer than this in the training split become ``<unk>``. None for 1 if that
            split already has ``<unk>``, else 2.
        max_size: Largest vocabulary; see ``limit_vocabulary``.
        valid_share: Fraction of the bytes of a text without splits that becomes ``valid``.
        test_share: Fraction that becomes ``test``.

    Raises:
        ValueError: An argument is not an allowed value, or is out of range.
        UserError: A file is missing, ambiguous, empty, not UTF-8, too small to be split, or changes
            while it is read; a split text is to be split otherwise; there are unknown words and no
            ``<unk>``; the cache cannot be written.
    """
    if min_count is not None and min_count < 1:
        raise ValueError(f"min_count must be 1 or more, not {min_count}")
    if max_size is not None and max_size < 2:
        raise ValueError(f"max_size must be 2 (<eos> and <unk>) or more, not {max_size}")
    for option, share in (("valid_share", valid_share), ("test_share", test_share)):
        if not 0 < share < 0.5:
            raise ValueError(f"{option} must be more than 0 and less than 0.5, not {share}")
    if tokenizer != "auto":
        require_tokenizer(tokenizer)
    files = find_files(Path(path).expanduser())
    is_split = isinstance(files, dict)
    if is_split and (valid_share, test_share) != (SHARE, SHARE):
        raise UserError(
            f"{path} is split already, so data.valid_share and data.test_share have no effect. "
            "Leave them out."
        )
    paths = list(files.values()) if isinstance(files, dict) else files
    hashes, with_unk = _read_through(paths)
    if tokenizer == "auto":
        tokenizer = NONE if (with_unk[0] if is_split else any(with_unk)) else "moses"
    limits = {"min_count": min_count, "max_size": max_size}
    shares = {"train": 1 - valid_share - test_share, "valid": valid_share, "test": test_share}
    options = (limits, tokenizer, version_of(tokenizer), None if is_split else shares)
    key = hashlib.sha256(repr((FORMAT, options, hashes)).encode()).hexdigest()

    def build(folder: Path) -> None:
        notes = []
        if isinstance(files, dict):
            blocks = {split: read_blocks(file) for split, file in files.items()}
        else:
            pieces, how = split_documents(files, shares, source=str(path))
            blocks = {split: joined(pieces[split]) for split in SPLITS}
            notes.append(how)
        if tokenizer != NONE:
            blocks = {split: _separated(blocks[split], tokenizer) for split in SPLITS}
            notes.append(
                f"punctuation is separated (data.tokenizer={tokenizer}); use data.tokenizer=none "
                "for text in which it already is"
            )
        vocabulary, of_words = write_ids(folder, blocks, source=str(path), **limits)
        write_words(folder, vocabulary, [*notes, *of_words])
        if _read_through(paths)[0] != hashes:  # the cache would keep it under the wrong key
            raise UserError(f"{path} changed while it was read. Start again when it is complete.")

    load = partial(open_corpus, name=name, tokenizer=tokenizer)
    return load_or_build(key, load=load, build=build, cache_dir=cache_dir)


def _read_through(files: Iterable[Path]) -> tuple[list[str], list[bool]]:
    """The hash of each file's text, and whether it has ``<unk>``."""
    hashes, with_unk = [], []
    for file in files:
        content, has_unk = hashlib.sha256(), False
        for block in read_blocks(file):
            content.update(block)
            has_unk = has_unk or UNK.encode() in block
        hashes.append(content.hexdigest())
        with_unk.append(has_unk)
    return hashes, with_unk


def _separated(blocks: Iterable[bytes], tokenizer: str) -> Iterator[bytes]:
    return (separate(block.decode(), tokenizer).encode() for block in blocks)


def write_words(folder: Path, vocabulary: Vocabulary, notes: Iterable[str] = ()) -> Corpus:
    """Adds the words and the hash to a folder of ids, which makes it a corpus."""
    corpus = _map_ids(folder, "", vocabulary)
    summary = {"sha256": corpus.sha256, "words": vocabulary.words, "notes": list(notes)}
    (folder / "corpus.json").write_text(json.dumps(summary), encoding="utf-8")
    return corpus


def open_corpus(folder: Path, name: str, tokenizer: str = NONE) -> Corpus | None:
    """The corpus in a folder of the cache; None if anything in it is not as it was written."""
    try:
        summary = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        corpus = _map_ids(folder, name, Vocabulary(tuple(summary["words"]), tokenizer))
        corpus = replace(corpus, notes=tuple(map(str, summary["notes"])))
        return corpus if corpus.sha256 == summary["sha256"] else None
    except Exception:  # damaged files make NumPy and json raise almost anything
        return None


def _map_ids(folder: Path, name: str, vocabulary: Vocabulary) -> Corpus:
    train, valid, test = (
        np.memmap(folder / f"{split}.bin", np.int32, mode="r") for split in SPLITS
    )
    return Corpus(name, vocabulary, train, valid, test)
