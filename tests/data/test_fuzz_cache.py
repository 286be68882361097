"""No damage to the cache gives a wrong corpus, but within the ids, where ``verify`` finds it."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from lmbench.data.corpus import SPLITS, Corpus, load_text
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError

TEXTS = {
    "train": "the cat sat on the <unk>\n\nthe mat was on the cat\n" * 3,
    "valid": "the dog sat\n" * 2,
    "test": "the mat was on the dog\n",
}
FILES = ("corpus.json", "train.npy", "valid.npy", "test.npy")
NPY = b"\x93NUMPY\x01\x00\x76\x00"
HEADERS = [  # as if of a .npy file, or of a zip archive, which NumPy opens too
    b"PK\x03\x04",
    NPY + b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }".ljust(118),
    NPY + b"{'descr': '<i4', 'fortran_order': False, 'shape': (10**9,), }".ljust(118),
    NPY
    + b"{'descr': '<i4', 'fortran_order': False, 'shape': (99999999999999999999,), }".ljust(118),
    NPY + b"{'descr': '<i4', 'fortran_order': False, 'shape': (-1,), }".ljust(118),
    NPY + b"{'descr': '<i4', 'fortran_order': False, 'shape': (3L,), }".ljust(118),
    NPY + b"(" * 118,
    b"[" * 100_000,
    b"{}",
    b"null",
    b'{"checksum": 1, "words": [[]], "sha256": "", "num_tokens": {}}',
]

damages = st.one_of(
    st.just(("delete", 0)),
    st.just(("folder", 0)),
    st.tuples(st.just("cut"), st.integers(0, 1000)),
    st.tuples(st.just("flip"), st.integers(0, 10_000)),
    st.tuples(st.just("flip"), st.integers(0, 8 * 128 - 1)),  # in the header, if it has one
    st.tuples(st.just("replace"), st.binary(max_size=300) | st.sampled_from(HEADERS)),
    st.tuples(st.just("append"), st.binary(min_size=1, max_size=10)),
    st.tuples(st.just("copy"), st.sampled_from(FILES)),
    st.tuples(st.just("ids"), st.lists(st.integers(0, 7), min_size=1, max_size=8)),
    st.tuples(st.just("ids"), st.lists(st.integers(-2, 9), min_size=1, max_size=8)),
    st.tuples(st.just("fewer ids"), st.integers(1, 10)),
)


def damage(path: Path, how: str, what) -> None:
    if not path.is_file():  # damaged before
        return
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "cut":
        path.write_bytes(content[: what % max(len(content), 1)])
    elif how == "flip":
        flipped = bytearray(content or b"?")
        place, bit = divmod(what % (8 * len(flipped)), 8)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
    elif how == "replace":
        path.write_bytes(what)
    elif how == "append":
        path.write_bytes(content + what)
    elif how == "copy":
        other = path.with_name(what)
        path.write_bytes(other.read_bytes() if other.is_file() else content)
    elif how == "ids" and len(content) > 128:
        np.save(path, np.resize(np.array(what, dtype=np.int32), (len(content) - 128) // 4))
    elif how == "fewer ids" and len(content) > 128:
        np.save(path, np.frombuffer(content[128 : len(content) // 4 * 4], dtype="<i4")[:-what])


class Cached:
    """A corpus in its cache, and what Python reads from its text."""

    def __init__(self, folder: Path) -> None:
        self.text, self.cache = folder / "text", folder / "cache"
        self.text.mkdir()
        for split, text in TEXTS.items():
            path = self.text / f"{split}.txt"
            path.write_text(text, encoding="utf-8")
            os.utime(path, ns=(10**18, 10**18))  # long ago, so that its hash is remembered
        self.sha256 = load_text(self.text, cache_dir=self.cache).sha256
        self.entry = next(self.cache.glob("*/corpus.json")).parent.name
        words = {split: text.replace("\n", " <eos> ").split() for split, text in TEXTS.items()}
        self.words = tuple(dict.fromkeys(words["train"]))
        self.ids = {
            split: [self.words.index(w if w in self.words else "<unk>") for w in words[split]]
            for split in SPLITS
        }

    def has(self, corpus: Corpus) -> bool:
        return all(getattr(corpus, split).tolist() == self.ids[split] for split in SPLITS)

    def is_all_that_is_in(self, cache: Path) -> bool:
        folders = {path.name for path in cache.iterdir() if path.is_dir()}
        entry = {path.name for path in (cache / self.entry).iterdir()}
        return folders == {self.entry, "files"} and entry == set(FILES)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Cached:
    return Cached(tmp_path_factory.mktemp("cached"))


def is_refused_in_training(corpus: Corpus) -> bool:
    datamodule = LanguageModelDataModule(corpus, batch_size=1, bptt=1000, evaluation_columns=1)
    loaders = (datamodule.train_dataloader, datamodule.val_dataloader, datamodule.test_dataloader)
    try:
        for loader in loaders:
            for batch in loader():
                datamodule.on_before_batch_transfer(batch, 0)
    except UserError:
        return True
    return False


@given(st.lists(st.tuples(st.sampled_from(FILES), damages), min_size=1, max_size=3))
def test_damage_is_mended_or_lies_within_the_ids(cached: Cached, steps):
    with tempfile.TemporaryDirectory() as root:
        cache = Path(root, "cache")
        shutil.copytree(cached.cache, cache)
        for file, (how, what) in steps:
            damage(cache / cached.entry / file, how, what)
        corpus = load_text(cached.text, cache_dir=cache)
        assert corpus.vocabulary.words == cached.words
        assert corpus.sha256 == cached.sha256
        assert corpus.num_tokens == {split: len(ids) for split, ids in cached.ids.items()}
        if not cached.has(corpus):
            assert {file for file, _ in steps} - {"corpus.json"}
            ids = np.concatenate([getattr(corpus, split) for split in SPLITS])
            outside = bool(((ids < 0) | (ids >= len(cached.words))).any())
            event(f"wrong ids, {'outside' if outside else 'within'} the vocabulary")
            assert is_refused_in_training(corpus) == outside
        assert cached.has(load_text(cached.text, cache_dir=cache, verify=True))
        assert cached.has(load_text(cached.text, cache_dir=cache))
        assert cached.is_all_that_is_in(cache)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=3), parts),
    max_leaves=5,
)
memories = st.one_of(
    st.binary(max_size=100),
    st.just(b"[" * 100_000),
    anything.map(lambda value: json.dumps(value).encode()),
    # The true one with something else in it.
    st.fixed_dictionaries({}, optional={"sha256": anything, "seal": anything}),
    st.fixed_dictionaries({"sha256": st.just("ab" * 32)}),
    st.integers(0, 2),  # of another file
)


@given(st.lists(memories, min_size=3, max_size=3))
def test_garbage_among_the_remembered_hashes_does_not_matter(cached: Cached, garbage):
    with tempfile.TemporaryDirectory() as root:
        cache = Path(root, "cache")
        shutil.copytree(cached.cache, cache)
        paths = sorted(cache.glob("files/*.json"))
        true = [path.read_bytes() for path in paths]
        assert len(true) == len(TEXTS)
        for path, own, new in zip(paths, true, garbage, strict=True):
            if isinstance(new, int):
                path.write_bytes(true[new])
            elif isinstance(new, dict):
                path.write_text(json.dumps(json.loads(own) | new), encoding="utf-8")
            else:
                path.write_bytes(new)
        for verify in (False, True, False):
            assert cached.has(load_text(cached.text, cache_dir=cache, verify=verify))
        assert [path.read_bytes() for path in paths] == true
        assert cached.is_all_that_is_in(cache)
