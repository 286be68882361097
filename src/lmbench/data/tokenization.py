"""From text to ids on disk, block by block so that memory stays bounded, word by word in C++."""

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int, Int32

from lmbench.data.vocabulary import EOS, UNK, Vocabulary, limit_vocabulary
from lmbench.errors import UserError

BLOCK_BYTES = 16 * 2**20
PART_BYTES = 2**16


def read_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Reads a UTF-8 file in blocks of whole lines; a byte order mark at its start is left out.

    Args:
        path: The file.
        block_bytes: Least size of a block; the line that crosses it still belongs to it.

    Raises:
        UserError: The file cannot be read, or is not UTF-8.
    """
    start = 0
    try:
        with path.open("rb") as file:
            while block := file.read(block_bytes):
                block += file.readline()
                block.decode()
                yield block if start else block.removeprefix(b"\xef\xbb\xbf")
                start += len(block)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at byte offset "
            f"{start + error.start:,} ({error.reason}). Convert the file to UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def read_parts(
    file: BinaryIO | BufferedIOBase, name: str, part_bytes: int = PART_BYTES
) -> Iterator[bytes]:
    """Reads UTF-8 text in parts that end between words, also where a line is as long as the text.

    A part that does not end in a line feed ends within a line; the last line always gets one. A
    byte order mark at the start is left out.

    Args:
        file: What is read.
        name: What error messages call it.
        part_bytes: Least size of a part.

    Raises:
        UserError: The text is not UTF-8, or cannot be read.
    """
    offset, line, ends_line = 0, 1, True
    begun: list[bytes] = []  # a word that no block has ended yet
    try:
        while block := file.read(part_bytes):
            end = 1 + max(block.rfind(b" "), block.rfind(b"\n"))
            if end == 0:
                begun.append(block)
                continue
            part = b"".join([*begun, block[:end]])
            begun = [block[end:]]
            part.decode()
            yield part if offset else part.removeprefix(b"\xef\xbb\xbf")
            offset, line = offset + len(part), line + part.count(b"\n")
            ends_line = part.endswith(b"\n")
        rest = b"".join(begun)
        rest.decode()
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise UserError(
            f"{name} is not UTF-8: byte {error.object[error.start]:#04x} at byte offset "
            f"{offset + error.start:,}, in line {line:,} ({error.reason}). Convert it to UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}.") from error
    if not offset:
        rest = rest.removeprefix(b"\xef\xbb\xbf")
    if rest or not ends_line:
        yield rest + b"\n"


def tokenize(block: bytes) -> tuple[list[str], Int[np.ndarray, " N"]]:
    """Splits lines into words at white space as ``str.split`` does, with ``<eos>`` after each line.

    Args:
        block: UTF-8 text. Only a line feed ends a line; a last line may go without.

    Returns:
        The types of the block in order of first appearance, and each token's place among them.
    """
    # Slow to import, and not needed where the cache has the corpus already.
    import pyarrow as pa
    import pyarrow.compute as pc

    if block and not block.endswith(b"\n"):
        block += b"\n"
    # Arrow looks at the byte behind white space at the very end, which is not ours: so end on a
    # word. White space at the start gives it an empty word, unlike str.split.
    lines = block.replace(b"\n", b" <eos> ").removesuffix(b" ")
    text = pa.array([lines], pa.large_string())
    tokens = pc.call_function("utf8_split_whitespace", [text]).flatten()
    tokens = tokens.filter(pc.call_function("not_equal", [tokens, ""])).dictionary_encode()
    return tokens.dictionary.to_pylist(), tokens.indices.to_numpy()


def write_ids(
    folder: Path,
    blocks: Mapping[str, Iterable[bytes]],
    *,
    source: str,
    min_count: int = 1,
    max_size: int | None = None,
) -> Vocabulary:
    """Writes the ids of each split to ``folder`` as ``SPLIT.npy``, int32.

    Args:
        folder: An empty folder.
        blocks: The text of the splits train, valid and test in blocks of whole lines, UTF-8.
        source: What error messages call the corpus.
        min_count: See ``limit_vocabulary``.
        max_size: See ``limit_vocabulary``.

    Returns:
        The vocabulary, made from the training split alone.

    Raises:
        UserError: A split is empty, or needs an ``<unk>`` that the training split does not have.
    """
    training = _TrainingWords()
    num_tokens = {"train": _write(folder / "train.npy", map(training.encode, blocks["train"]))}
    words = list(training.ids)
    vocabulary, new_ids = limit_vocabulary(words, training.counts, min_count, max_size)
    if vocabulary.words != tuple(words):
        _renumber(folder / "train.npy", new_ids)
    heldout = {split: _HeldOutWords(vocabulary) for split in ("valid", "test")}
    for split, encoder in heldout.items():
        num_tokens[split] = _write(folder / f"{split}.npy", map(encoder.encode, blocks[split]))
    if empty := [split for split, count in num_tokens.items() if not count]:
        raise UserError(f"{source}: no text in {' and '.join(empty)}. Each split needs some.")
    if vocabulary.unk_id is None and any(encoder.num_unknown for encoder in heldout.values()):
        shares = " and ".join(
            f"{encoder.num_unknown:,} of {num_tokens[split]:,} tokens "
            f"({encoder.num_unknown / num_tokens[split]:.2%}) in {split}"
            for split, encoder in heldout.items()
        )
        examples = dict.fromkeys(word for e in heldout.values() for word in e.examples)
        counts = dict(zip(words, training.counts.tolist(), strict=True))
        raise UserError(
            f"{source}: {shares} are words that the training split does not have, such as "
            f"{', '.join(map(reprlib.repr, list(examples)[:5]))}, and it has no {UNK} that could "
            f"have been trained to stand for them. {_how_to_get_unk(counts)}"
        )
    return vocabulary


def _how_to_get_unk(counts: dict[str, int]) -> str:
    """Advice for a training text of which every word is kept."""
    rarest = min((count for word, count in counts.items() if word != EOS), default=None)
    if rarest is None:
        return "Give a training split that has words."
    limits = f"data.min_count={rarest + 1} (or more)"
    if len(counts) > 2:  # the least max_size
        limits += f", or data.max_size below {len(counts):,}"
    return f"Set data=text with {limits}: rare training words then become {UNK}."


class _TrainingWords:
    """Numbers words in order of first appearance, and counts them."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.counts = np.zeros(0, dtype=np.int64)

    def encode(self, block: bytes) -> Int32[np.ndarray, " N"]:
        types, places = tokenize(block)
        ids = [self.ids.setdefault(word, len(self.ids)) for word in types]
        self.counts = np.pad(self.counts, (0, len(self.ids) - len(self.counts)))
        self.counts[ids] += np.bincount(places, minlength=len(types))
        return np.array(ids, dtype=np.int32)[places]


class _HeldOutWords:
    """Looks words up, and counts those that are not there."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.num_unknown = 0
        self.examples: list[str] = []

    def encode(self, block: bytes) -> Int32[np.ndarray, " N"]:
        types, places = tokenize(block)
        ids = np.array([self.vocabulary.ids.get(word, -1) for word in types], dtype=np.int32)
        unknown = ids == -1
        self.num_unknown += int(np.count_nonzero(unknown[places]))
        self.examples += [types[place] for place in np.flatnonzero(unknown)[:5]]
        if self.vocabulary.unk_id is not None:
            ids[unknown] = self.vocabulary.unk_id
        return ids[places]


def _write(path: Path, parts: Iterable[Int32[np.ndarray, " _"]]) -> int:
    """Writes arrays one after the other as a single one; returns its length."""
    length = 0
    with path.open("wb") as file:
        _write_header(file, length)
        for part in parts:
            file.write(part.astype("<i4", copy=False).data)
            length += len(part)
        # numpy pads a header so that its first axis can grow in place.
        file.seek(0)
        _write_header(file, length)
    return length


def _write_header(file: BinaryIO, length: int) -> None:
    header = {"descr": "<i4", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)


def _renumber(path: Path, new_ids: Int32[np.ndarray, " V"]) -> None:
    ids = np.load(path, mmap_mode="r+")
    for start in range(0, len(ids), BLOCK_BYTES):
        ids[start : start + BLOCK_BYTES] = new_ids[ids[start : start + BLOCK_BYTES]]
    ids.flush()
