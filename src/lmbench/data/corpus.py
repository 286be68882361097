"""A corpus: three streams of token ids and their vocabulary."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lmbench.data.cache import content_hash, load_or_build
from lmbench.data.tokenization import read_blocks, write_ids
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError

SPLITS = ("train", "valid", "test")
FORMAT = 2  # part of every cache key: raise it when the files of a cached corpus change


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

    def require_sha256(self, sha256: object) -> None:
        """Refuses to go on with a checkpoint of another corpus.

        Raises:
            UserError: The hashes differ.
        """
        if sha256 != self.sha256:
            raise UserError(
                f"The checkpoint was trained on a corpus with sha256 {sha256}, but the corpus "
                f"{self.name!r} at hand has {self.sha256}. Give the same corpus and the same "
                "vocabulary options as in the run's config.yaml."
            )

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {self.vocabulary!r}, num_tokens={self.num_tokens})"


def load_text(
    path: str | Path,
    *,
    name: str = "text",
    cache_dir: str | Path | None = None,
    min_count: int = 1,
    max_size: int | None = None,
    verify: bool = False,
) -> Corpus:
    """Loads a corpus from a folder of UTF-8 text, one file a split.

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
        verify: Read every text file and every cached id, where otherwise a file that has the size
            and the time of change of last time is taken to be the same, and of the cache only a
            checksum of its summary and the lengths are looked at.

    Raises:
        UserError: An option is out of range; a file is missing, ambiguous, empty, not UTF-8, or
            changes meanwhile; there are unknown words and no ``<unk>``; the cache cannot be
            written.
    """
    if min_count < 1:
        raise UserError(f"data.min_count must be 1 or more, not {min_count}.")
    if max_size is not None and max_size < 2:
        raise UserError(f"data.max_size must be 2 (<eos> and <unk>) or more, not {max_size}.")
    files = _find_files(Path(path).expanduser())
    hashes = {
        split: content_hash(file, partial(read_blocks, file), cache_dir, verify=verify)
        for split, file in files.items()
    }

    def build(folder: Path) -> None:
        blocks = {split: _read_again(file, hashes[split]) for split, file in files.items()}
        vocabulary = write_ids(
            folder, blocks, source=str(path), min_count=min_count, max_size=max_size
        )
        write_summary(folder, vocabulary)

    digest = hashlib.sha256(repr((FORMAT, min_count, max_size)).encode())
    for content in hashes.values():
        digest.update(bytes.fromhex(content))
    load = partial(open_corpus, name=name, verify=verify)
    return load_or_build(digest.hexdigest(), load=load, build=build, cache_dir=cache_dir)


def _read_again(file: Path, expected: str) -> Iterator[bytes]:
    """Blocks of a file, which must not get into the cache as what it was before a change."""
    digest = hashlib.sha256()
    for block in read_blocks(file):
        digest.update(block)
        yield block
    if digest.hexdigest() != expected:
        raise UserError(
            f"{file} has changed since its hash was taken. Wait until nothing writes to it any "
            "more, and start again with data.verify=true."
        )


def _find_files(folder: Path) -> dict[str, Path]:
    problem, names = "", []
    try:
        if folder.is_dir():
            names = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
        else:
            problem = "is a file, not a folder" if folder.exists() else "does not exist"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    if problem:
        raise UserError(
            f"{folder} {problem}. Set data.path=… to a folder with train.txt, valid.txt, test.txt."
        )
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


def write_summary(folder: Path, vocabulary: Vocabulary) -> Corpus:
    """Completes a folder of ids by ``corpus.json``, which makes it a corpus."""
    splits = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS}
    corpus = Corpus("", vocabulary, **splits)
    summary = {
        "sha256": corpus.sha256,
        "num_tokens": corpus.num_tokens,
        "words": vocabulary.words,
    }
    (folder / "corpus.json").write_text(
        json.dumps({"checksum": _checksum(summary), **summary}), encoding="utf-8"
    )
    return corpus


def open_corpus(folder: Path, name: str, *, verify: bool = False) -> Corpus | None:
    """The corpus in a folder of the cache, or None if it is not there whole.

    Args:
        folder: What ``write_ids`` and ``write_summary`` filled.
        name: Name of the corpus in results.
        verify: Also compare all ids with the hash that was taken when they were written.
    """
    try:
        summary = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        checksum = summary.pop("checksum")
        # Not np.load, which takes other kinds of file too.
        train, valid, test = (
            np.lib.format.open_memmap(folder / f"{split}.npy", mode="r") for split in SPLITS
        )
        vocabulary = Vocabulary(tuple(summary["words"]))
        hash_of_ids = "" if verify else summary["sha256"]  # empty: taken anew
        corpus = Corpus(name, vocabulary, train, valid, test, sha256=hash_of_ids)
        whole = (
            checksum == _checksum(summary)
            and corpus.num_tokens == summary["num_tokens"]
            and corpus.sha256 == summary["sha256"]
        )
    except Exception:  # damaged files make NumPy and json raise almost anything
        return None
    return corpus if whole else None


def _checksum(summary: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(summary).encode()).hexdigest()
