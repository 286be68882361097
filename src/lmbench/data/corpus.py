"""A corpus: three streams of token ids and their vocabulary."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from lmbench.data._disk_cache import load_or_build
from lmbench.data._documents import joined, split_documents
from lmbench.data._encoding import write_ids
from lmbench.data._overlap import overlap
from lmbench.data.text_files import SPLITS, find_files, read_blocks
from lmbench.data.tokenizer.choice import make_tokenizer, plain_tokenizer
from lmbench.data.tokenizer.contract import Tokenizer
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError

SHARE = 0.05
"""Default fraction of a text without splits that becomes ``valid``, and ``test``."""

HIGH_OVERLAP = 0.1
"""Share of a split's lines in train from which it is warned about."""

FORMAT = 13  # part of every cache key: raise it when the files of a cached corpus change


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids of the training, validation and test splits, and the vocabulary they index.

    Args:
        name: What results call it, such as ``wikitext2`` or ``synthetic``.
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
    name: str | None = None,
    cache_dir: str | Path | None = None,
    tokenizer: Tokenizer | Mapping[str, Any] | str = "none",
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
            other ``.txt`` files, which may be in subfolders. These are split by documents.
        name: Name of the corpus in results; None for ``novel.txt`` or ``novels/``, the name
            of the file or folder.
        cache_dir: Where the ids are cached, by content; see ``load_or_build``.
        tokenizer: What cuts the text; or its name or config node, see
            :func:`lmbench.data.tokenizer.choice.make_tokenizer`.
        min_count: Words rarer than this in the training split become ``<unk>``. None for 1 if that
            split already has ``<unk>``, else 2.
        max_size: Largest vocabulary; see ``limit_vocabulary``.
        valid_share: Fraction of the bytes of a text without splits that becomes ``valid``.
        test_share: Fraction that becomes ``test``.

    Raises:
        ValueError: An argument is not an allowed value, or is out of range.
        UserError: A file is missing, ambiguous, empty, not UTF-8, too small to be split, or changes
            while it is read; there are unknown words and no ``<unk>``; the cache cannot be written.
    """
    if min_count is not None and min_count < 1:
        raise ValueError(f"min_count must be 1 or more, not {min_count}")
    if max_size is not None and max_size < 2:
        raise ValueError(f"max_size must be 2 (<eos> and <unk>) or more, not {max_size}")
    for option, share in (("valid_share", valid_share), ("test_share", test_share)):
        if not 0 < share < 0.5:
            raise ValueError(f"{option} must be more than 0 and less than 0.5, not {share}")
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = make_tokenizer(tokenizer)
    path = Path(path).expanduser()
    files = find_files(path)
    place = path.resolve()
    name = name or (f"{place.name}/" if place.is_dir() else place.name)
    paths = list(files.values()) if isinstance(files, dict) else files
    hashes = list(map(_hash, paths))
    limits = {"min_count": min_count, "max_size": max_size}
    shares = {"train": 1 - valid_share - test_share, "valid": valid_share, "test": test_share}
    options = (limits, plain_tokenizer(tokenizer), tokenizer.version, shares)
    key = hashlib.sha256(repr((FORMAT, options, hashes)).encode()).hexdigest()

    def build(folder: Path) -> None:
        notes = []
        if isinstance(files, dict):
            read = {split: partial(read_blocks, file) for split, file in files.items()}
            if (valid_share, test_share) != (SHARE, SHARE):
                notes.append(f"{path} is split already: valid_share and test_share do nothing")
        else:
            pieces, how = split_documents(files, shares, source=str(path))
            read = {split: partial(joined, pieces[split]) for split in SPLITS}
            notes.append(how)
        fitted = tokenizer.fit(read["train"]())
        if fitted.name != tokenizer.name:
            chosen = f"data.tokenizer={tokenizer.name} chose {fitted.name}"
            notes.append(f"{chosen}; data.tokenizer=none leaves words as they are")
        blocks = {split: read[split]() for split in SPLITS}
        vocabulary, more_notes = write_ids(folder, blocks, fitted, source=str(path), **limits)
        notes += [*more_notes, *_overlap_notes(_map_ids(folder, name, vocabulary))]
        write_words(folder, vocabulary, notes)
        if list(map(_hash, paths)) != hashes:  # the cache would keep it under the wrong key
            raise UserError(f"{path} changed while it was read. Start again when it is complete.")

    load = partial(open_corpus, name=name, tokenizer=tokenizer)
    return load_or_build(key, load=load, build=build, cache_dir=cache_dir)


def _overlap_notes(corpus: Corpus) -> Iterator[str]:
    eos_id = corpus.vocabulary.ids[corpus.vocabulary.tokenizer.eos]
    for split in ("valid", "test"):
        share = overlap(corpus.train, getattr(corpus, split), eos_id)
        if share >= HIGH_OVERLAP:
            yield (
                f"{share:.0%} of {split}'s lines also stand in train: the model has seen what it "
                "is tested on, and its perplexity will be too low"
            )


def _hash(file: Path) -> str:
    """The hash of a file's text."""
    content = hashlib.sha256()
    for block in read_blocks(file):
        content.update(block)
    return content.hexdigest()


def write_words(folder: Path, vocabulary: Vocabulary, notes: Iterable[str] = ()) -> Corpus:
    """Adds words, tokenizer and hash to a folder of ids, which makes it a corpus."""
    corpus = _map_ids(folder, "", vocabulary)
    summary = {
        "sha256": corpus.sha256,
        "words": vocabulary.words,
        "tokenizer": plain_tokenizer(vocabulary.tokenizer),
        "notes": list(notes),
    }
    (folder / "corpus.json").write_text(json.dumps(summary), encoding="utf-8")
    return corpus


def open_corpus(folder: Path, name: str, tokenizer: Tokenizer) -> Corpus | None:
    """The corpus in a folder of the cache; None if anything in it is not as it was written.

    Args:
        folder: The folder.
        name: The name that the corpus gets.
        tokenizer: What has cut the text, unless it has learned from the text or chosen another.
    """
    try:
        summary = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        if summary["tokenizer"] != plain_tokenizer(tokenizer):
            tokenizer = make_tokenizer(summary["tokenizer"])
        vocabulary = Vocabulary(tuple(summary["words"]), tokenizer)
        corpus = _map_ids(folder, name, vocabulary)
        corpus = replace(corpus, notes=tuple(map(str, summary["notes"])))
        return corpus if corpus.sha256 == summary["sha256"] else None
    except Exception:  # damaged files make NumPy and json raise almost anything
        return None


def _map_ids(folder: Path, name: str, vocabulary: Vocabulary) -> Corpus:
    train, valid, test = (
        np.memmap(folder / f"{split}.bin", np.int32, mode="r") for split in SPLITS
    )
    return Corpus(name, vocabulary, train, valid, test)
