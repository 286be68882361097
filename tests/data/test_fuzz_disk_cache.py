"""No damage to the cache gives a wrong corpus."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmbench.data.corpus import SPLITS, load_text

TEXTS = {
    "train": "the cat sat on the <unk>\n\nthe mat was on the cat\n" * 3,
    "valid": "the dog sat\n" * 2,
    "test": "the mat was on the dog\n",
}
FILES = ("corpus.json", "train.bin", "valid.bin", "test.bin")
GARBAGE = [b"[" * 100_000, b"{}", b"null", b'{"words": [[]], "sha256": ""}', b"\0" * 12]


def flip(content: bytes, number: int) -> bytes:
    place, bit = divmod(number % (8 * len(content)), 8)
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def other_ids(content: bytes, ids: list[int]) -> bytes:
    return np.resize(np.array(ids, dtype=np.int32), len(content) // 4).tobytes()


# Each turns a file's bytes into others, or into None if the file is to be deleted.
damages = st.one_of(
    st.just(lambda _: None),
    st.integers(0, 1000).map(lambda number: lambda content: content[: number % len(content)]),
    st.integers(0, 10_000).map(lambda number: lambda content: flip(content, number)),
    (st.binary(max_size=300) | st.sampled_from(GARBAGE)).map(lambda new: lambda _: new),
    st.binary(min_size=1, max_size=10).map(lambda more: lambda content: content + more),
    st.lists(st.integers(-2, 9), min_size=1, max_size=8).map(lambda x: lambda c: other_ids(c, x)),
)


class Cached:
    """A corpus in its cache, and what Python reads from its text."""

    def __init__(self, folder: Path) -> None:
        self.text, self.cache = folder / "text", folder / "cache"
        self.text.mkdir()
        for split, text in TEXTS.items():
            (self.text / f"{split}.txt").write_text(text, encoding="utf-8")
        self.sha256 = load_text(self.text, cache_dir=self.cache).sha256
        self.entry = next(self.cache.glob("*/corpus.json")).parent.name
        words = {split: text.replace("\n", " <eos> ").split() for split, text in TEXTS.items()}
        self.words = tuple(dict.fromkeys(words["train"]))
        self.ids = {
            split: [self.words.index(w if w in self.words else "<unk>") for w in words[split]]
            for split in SPLITS
        }


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Cached:
    return Cached(tmp_path_factory.mktemp("cached"))


@given(st.dictionaries(st.sampled_from(FILES), damages, min_size=1))
def test_damage_is_mended(cached: Cached, damaged):
    with tempfile.TemporaryDirectory() as root:
        cache = Path(root, "cache")
        shutil.copytree(cached.cache, cache)
        for file, damage in damaged.items():
            path = cache / cached.entry / file
            content = damage(path.read_bytes())
            path.unlink() if content is None else path.write_bytes(content)
        corpus = load_text(cached.text, cache_dir=cache)
        assert (corpus.vocabulary.words, corpus.sha256) == (cached.words, cached.sha256)
        assert all(getattr(corpus, split).tolist() == cached.ids[split] for split in SPLITS)
        assert {path.name for path in cache.iterdir() if path.is_dir()} == {cached.entry}
        assert {path.name for path in (cache / cached.entry).iterdir()} == set(FILES)
