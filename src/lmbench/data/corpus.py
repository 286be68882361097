"""A corpus: three streams of token ids and their vocabulary."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from lmbench.data.disk_cache import load_or_build
from lmbench.data.tokenization import SPLITS, read_blocks, write_ids
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError

FILE_NAMES = ("{}.txt", "{}.tokens", "wiki.{}.tokens", "ptb.{}.txt")
FORMAT = 3  # part of every cache key: raise it when the files of a cached corpus change


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids of the training, validation and test split, and the vocabulary they index.

    Args:
        name: What results call it, such as ``wikitext2``, ``text`` or ``synthetic``.
        vocabulary: Id to word.
        train: 1-D int32 ids, which may lie on disk.
        valid: The same of the validation split.
        test: The same of the test split.
        perplexity_floor: Perplexity of the true distribution on ``valid`` and ``test``, where it
            is known.
    """

    name: str
    vocabulary: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    perplexity_floor: Mapping[str, float] | None = None

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the words, with a line feed each, then of the ids as little-endian int32.

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
                f"{self.name!r} at hand has {self.sha256}. Give the same corpus and the same "
                "vocabulary options as in the run's config.yaml."
            )


def load_text(
    path: str | Path,
    *,
    name: str = "text",
    cache_dir: str | Path | None = None,
    min_count: int = 1,
    max_size: int | None = None,
) -> Corpus:
    """Loads a corpus from a folder of UTF-8 text, one file a split.

    A line gives its words, as ``str.split`` finds them, and ``<eos>``; an empty line gives
    ``<eos>``. The vocabulary comes from the training split, ids in order of first appearance;
    other words of the other splits become ``<unk>``.

    Args:
        path: Folder with ``train.txt``, ``train.tokens``, ``wiki.train.tokens`` or
            ``ptb.train.txt``, and the same for ``valid`` and ``test``.
        name: Name of the corpus in results.
        cache_dir: Where the ids are kept, by content; see ``load_or_build``.
        min_count: Words that the training split has less often become ``<unk>``.
        max_size: Largest vocabulary; see ``limit_vocabulary``.

    Raises:
        ValueError: ``min_count`` or ``max_size`` is too small.
        UserError: A file is missing, ambiguous, empty, not UTF-8, or changes while it is read;
            there are unknown words and no ``<unk>``; the cache cannot be written.
    """
    if min_count < 1:
        raise ValueError(f"min_count must be 1 or more, not {min_count}")
    if max_size is not None and max_size < 2:
        raise ValueError(f"max_size must be 2 (<eos> and <unk>) or more, not {max_size}")
    files = _find_files(Path(path).expanduser())
    limits = {"min_count": min_count, "max_size": max_size}
    key = _content_hash(files, limits)

    def build(folder: Path) -> None:
        blocks = {split: read_blocks(file) for split, file in files.items()}
        write_words(folder, write_ids(folder, blocks, source=str(path), **limits))
        if _content_hash(files, limits) != key:  # the cache would keep it under the wrong key
            raise UserError(f"{path} has changed while it was read. Start again when it is whole.")

    load = partial(open_corpus, name=name)
    return load_or_build(key, load=load, build=build, cache_dir=cache_dir)


def _content_hash(files: Mapping[str, Path], limits: Mapping[str, int | None]) -> str:
    """SHA-256 of all that decides the ids of a corpus."""
    digest = hashlib.sha256(repr((FORMAT, limits)).encode())
    for file in files.values():
        content = hashlib.sha256()
        for block in read_blocks(file):
            content.update(block)
        digest.update(content.digest())
    return digest.hexdigest()


def _find_files(folder: Path) -> dict[str, Path]:
    try:
        names = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read: {error.strerror}. Set data.path=… to a folder with "
            "train.txt, valid.txt and test.txt."
        ) from error
    files = {}
    for split in SPLITS:
        wanted = [name.format(split) for name in FILE_NAMES]
        found = [name for name in wanted if name in names]
        if len(found) != 1:
            shown = found or [*names[:10], *(["…"] if len(names) > 10 else [])]
            raise UserError(
                f"{folder} must have one file for the {split} split: {' or '.join(wanted)}. It has "
                f"{', '.join(shown) or 'no file'}. Mend that, or set data.path=… to another folder."
            )
        files[split] = folder / found[0]
    return files


def write_words(folder: Path, vocabulary: Vocabulary) -> Corpus:
    """Adds the words and the hash to a folder of ids, which makes it a corpus."""
    corpus = _map_ids(folder, "", vocabulary)
    summary = {"sha256": corpus.sha256, "words": vocabulary.words}
    (folder / "corpus.json").write_text(json.dumps(summary), encoding="utf-8")
    return corpus


def open_corpus(folder: Path, name: str) -> Corpus | None:
    """The corpus in a folder of the cache; None if anything in it is not as it was written."""
    try:
        summary = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        corpus = _map_ids(folder, name, Vocabulary(tuple(summary["words"])))
        return corpus if corpus.sha256 == summary["sha256"] else None
    except Exception:  # damaged files make NumPy and json raise almost anything
        return None


def _map_ids(folder: Path, name: str, vocabulary: Vocabulary) -> Corpus:
    train, valid, test = (
        np.memmap(folder / f"{split}.bin", np.int32, mode="r") for split in SPLITS
    )
    return Corpus(name, vocabulary, train, valid, test)
