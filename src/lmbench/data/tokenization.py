"""From text to ids on disk, in blocks so that memory stays bounded; Arrow splits the words."""

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int

from lmbench.data.vocabulary import EOS, UNK, Vocabulary, limit_vocabulary
from lmbench.errors import UserError

SPLITS = ("train", "valid", "test")
BLOCK_BYTES = 16 * 2**20
RENUMBERED_TOGETHER = 2**20  # tokens
HIGH_UNK_SHARE = 0.2
"""Share of valid from which ``<unk>`` is warned about: WikiText-2 has 5%."""
LONG_LINE_TOKENS = 1000
"""Mean length from which lines are warned about."""


def read_blocks(
    file: Path | BinaryIO | BufferedIOBase, name: str = "", block_bytes: int = BLOCK_BYTES
) -> Iterator[bytes]:
    """Reads UTF-8 text in blocks of whole lines, without a byte order mark at its start.

    Args:
        file: A path, or an open file.
        name: What error messages call it; a path by default.
        block_bytes: Least size of a block, which is extended to the end of its last line.

    Raises:
        UserError: The file cannot be read, or is not UTF-8.
    """
    name = name or str(file)
    offset, line = 0, 1
    try:
        with file.open("rb") if isinstance(file, Path) else nullcontext(file) as opened:
            while block := opened.read(block_bytes):
                block += opened.readline()
                block.decode()
                yield block if offset else block.removeprefix(b"\xef\xbb\xbf")
                offset, line = offset + len(block), line + block.count(b"\n")
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        is_utf16 = offset == 0 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        kind, encoding = ("UTF-16", "utf-16") if is_utf16 else ("from Windows", "windows-1252")
        raise UserError(
            f"{name} is not UTF-8: byte {error.object[error.start]:#04x} at byte offset "
            f"{offset + error.start:,}, in line {line:,} ({error.reason}). If it is {kind}, "
            f"this converts it: iconv -f {encoding} -t utf-8 OLD > NEW."
        ) from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}.") from error


def tokenize(block: bytes) -> tuple[list[str], Int[np.ndarray, " N"]]:
    """Splits lines into words at white space as ``str.split`` does, with ``<eos>`` after each line.

    Args:
        block: UTF-8 text. Only a line feed ends a line; the last line need not have one.

    Returns:
        The types of the block in order of first appearance, and each token's place among them.
    """
    # Slow to import, and not needed if the corpus is in the cache.
    import pyarrow as pa
    import pyarrow.compute as pc

    if block and not block.endswith(b"\n"):
        block += b"\n"
    # If the text ends with white space, Arrow reads the byte after it, which is not ours; so it
    # ends with a word. White space at the start gives an empty word, unlike in str.split.
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
    min_count: int | None = None,
    max_size: int | None = None,
) -> tuple[Vocabulary, list[str]]:
    """Writes the ids of each split to ``folder`` as ``SPLIT.bin``: int32 and nothing else.

    Args:
        folder: An empty folder.
        blocks: The text of the splits train, valid and test in blocks of whole lines, UTF-8.
        source: What error messages call the corpus.
        min_count: See ``limit_vocabulary``. None for 1 if the training split has ``<unk>``, as
            prepared corpora do, else 2, so that there is an ``<unk>`` to learn.
        max_size: See ``limit_vocabulary``.

    Returns:
        The vocabulary, made from the training split alone; and notes for people: what became
        ``<unk>``, and what may make the perplexity say little.

    Raises:
        UserError: A split is empty, or needs an ``<unk>`` that the training split does not have.
    """
    # First all words get ids in order of appearance, so those that train lacks come last.
    ids: dict[str, int] = {}
    counts = {split: _write(folder / f"{split}.bin", blocks[split], ids) for split in SPLITS}
    if empty := [split for split in SPLITS if not counts[split].any()]:
        raise UserError(f"{source}: no text in {' and '.join(empty)}. Each split needs some.")
    words = list(ids)
    num_types = len(counts["train"])
    has_unk = ids.get(UNK, num_types) < num_types
    if min_count is None:
        min_count = 1 if has_unk else 2
    vocabulary, new_ids = limit_vocabulary(words[:num_types], counts["train"], min_count, max_size)
    unknown = words[num_types:]
    if unknown and vocabulary.unk_id is None:
        ordinary = counts["train"][[word != EOS for word in words[:num_types]]]
        examples = ", ".join(map(reprlib.repr, unknown[:5]))
        raise UserError(
            f"{source}: valid and test have words that the training split lacks "
            f"({len(unknown):,}, such as {examples}), and it has no {UNK} to train in their "
            f"place. Set data=text with data.min_count="
            f"{min(ordinary, default=1) + 1} or more: rarer words become {UNK}."
        )
    new_ids = np.pad(new_ids, (0, len(unknown)), constant_values=vocabulary.unk_id or 0)
    if vocabulary.words != tuple(words):
        for split in SPLITS:
            written = np.memmap(folder / f"{split}.bin", np.int32, mode="r+")
            num_parts = 1 + len(written) // RENUMBERED_TOGETHER  # so that memory is bounded
            for part in np.array_split(written, num_parts):
                part[:] = new_ids[part]
            written.flush()
    is_unk = new_ids == vocabulary.unk_id
    num_rare = is_unk[:num_types].sum() - has_unk
    notes = []
    if num_rare or unknown:
        shares = {split: c[is_unk[: len(c)]].sum() / c.sum() for split, c in counts.items()}
        notes.append(
            f"{UNK} stands for {num_rare:,} words that are too rare in train "
            f"(data.min_count={min_count}, data.max_size={max_size or 'null'}) and "
            f"{len(unknown):,} that do not occur there: "
            + ", ".join(f"{share:.1%} of {split}" for split, share in shares.items())
        )
        if shares["valid"] > HIGH_UNK_SHARE:
            notes.append(
                f"so many {UNK} are easy to predict, and the perplexity says little: "
                "train on more text"
            )
    num_lines = counts["train"][ids[EOS]]
    if counts["train"].sum() > LONG_LINE_TOKENS * num_lines:
        notes.append(
            f"train has {num_lines:,} line ends; a model learns better if each paragraph or "
            "sentence is a line"
        )
    return vocabulary, notes


def _write(path: Path, blocks: Iterable[bytes], ids: dict[str, int]) -> Int[np.ndarray, " V"]:
    """Writes the ids of a text, adds new words to ``ids``, and counts how often each occurs."""
    counts = np.zeros(0, dtype=np.int64)
    with path.open("wb") as file:
        for block in blocks:
            types, places = tokenize(block)
            type_ids = [ids.setdefault(word, len(ids)) for word in types]
            counts = np.pad(counts, (0, len(ids) - len(counts)))
            counts[type_ids] += np.bincount(places, minlength=len(types))
            file.write(np.array(type_ids, dtype=np.int32)[places].data)
    return counts
