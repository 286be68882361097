"""From text to ids on disk, in blocks so that memory stays bounded."""

import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lmbench.data.text_files import SPLITS
from lmbench.data.tokenizer.contract import Tokenizer
from lmbench.data.vocabulary import UNK, Vocabulary, limit_vocabulary
from lmbench.errors import UserError

RENUMBERED_TOGETHER = 2**20  # tokens
HIGH_UNK_SHARE = 0.2
"""Share of valid from which ``<unk>`` is warned about: WikiText-2 has 5%."""
UNEVEN_UNK_SHARE = 0.05
"""Points by which ``<unk>`` is more frequent in valid or test than in train, to be warned about."""
LONG_LINE_TOKENS = 1000
"""Mean length from which lines are warned about."""


def write_ids(
    folder: Path,
    blocks: Mapping[str, Iterable[bytes]],
    tokenizer: Tokenizer,
    *,
    source: str,
    min_count: int | None = None,
    max_size: int | None = None,
) -> tuple[Vocabulary, list[str]]:
    """Writes the ids of each split to ``folder`` as ``SPLIT.bin``: int32 and nothing else.

    Args:
        folder: An empty folder.
        blocks: The text of the splits train, valid and test in blocks of whole lines, UTF-8.
        tokenizer: What cuts it.
        source: What error messages call the corpus.
        min_count: See ``limit_vocabulary``. None for 1 if the training split has ``<unk>``, as
            prepared corpora do, or the tokenizer has none; else 2, so that there is an ``<unk>`` to
            learn.
        max_size: See ``limit_vocabulary``.

    Returns:
        The vocabulary, made from the training split alone; and notes for people: what became
        ``<unk>``, and what may make the perplexity say little.

    Raises:
        UserError: A split is empty, or needs an ``<unk>`` that the training split does not have.
    """
    # First all words get ids in order of appearance, so those that train lacks come last.
    ids: dict[str, int] = {}
    counts = {
        split: _write(folder / f"{split}.bin", map(tokenizer.cut_block, blocks[split]), ids)
        for split in SPLITS
    }
    if empty := [split for split in SPLITS if not counts[split].any()]:
        raise UserError(f"{source}: no text in {' and '.join(empty)}. Each split needs some.")
    words = list(ids)
    num_types = len(counts["train"])
    has_unk = ids.get(UNK, num_types) < num_types
    if min_count is None:
        min_count = 1 if has_unk or tokenizer.unk is None else 2
    vocabulary, new_ids = limit_vocabulary(
        words[:num_types], counts["train"], min_count, max_size, tokenizer
    )
    unknown = words[num_types:]
    if unknown and vocabulary.unk_id is None:
        ordinary = counts["train"][[word != tokenizer.eos for word in words[:num_types]]]
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
        elif max(shares.values()) > shares["train"] + UNEVEN_UNK_SHARE:
            notes.append(
                f"train has far fewer {UNK} than the splits it is tested on: train on more text"
            )
    num_lines = counts["train"][ids[tokenizer.eos]]
    if counts["train"].sum() > LONG_LINE_TOKENS * num_lines:
        notes.append(
            f"train has {num_lines:,} line ends; a model learns better if each paragraph or "
            "sentence is a line"
        )
    return vocabulary, notes


def _write(
    path: Path, blocks: Iterable[tuple[list[str], np.ndarray]], ids: dict[str, int]
) -> Int[np.ndarray, " V"]:
    """Writes the ids of a text, adds new words to ``ids``, and counts how often each occurs."""
    counts = np.zeros(0, dtype=np.int64)
    with path.open("wb") as file:
        for types, places in blocks:
            type_ids = [ids.setdefault(word, len(ids)) for word in types]
            counts = np.pad(counts, (0, len(ids) - len(counts)))
            counts[type_ids] += np.bincount(places, minlength=len(types))
            file.write(np.array(type_ids, dtype=np.int32)[places].data)
    return counts
