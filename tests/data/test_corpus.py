import hashlib
import os
import struct
import subprocess
import sys
from itertools import product
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from lmbench.data import corpus as corpus_module
from lmbench.data.corpus import Corpus, load_text
from lmbench.data.published import load_penn_treebank, load_wikitext2
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError

WIKITEXT2 = Path(__file__).parents[2] / ".." / "shared" / "data" / "wikitext-2"
needs_wikitext2 = pytest.mark.skipif(not WIKITEXT2.is_dir(), reason="WikiText-2 is not at hand")

DAMAGES = ("missing", "empty", "truncated")
TEXTS = {
    "train": " \n = Title = \n \n the cat sat on the <unk> \n",
    "valid": " \n the dog sat \n",
    "test": " = cat = \n \n",
}


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


def write_folder(folder, texts=TEXTS, pattern="{}.txt"):
    folder.mkdir()
    for split, text in texts.items():
        (folder / pattern.format(split)).write_bytes(text.encode())
    return folder


def reference_tokens(text: str) -> list[str]:
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [word for line in lines for word in [*line.split(), "<eos>"]]


def reference_sha256(texts) -> str:
    words = list(dict.fromkeys(reference_tokens(texts["train"])))
    ids = {word: number for number, word in enumerate(words)}
    digest = hashlib.sha256("".join(f"{word}\n" for word in words).encode())
    for split in ("train", "valid", "test"):
        numbers = [ids.get(word, ids.get("<unk>")) for word in reference_tokens(texts[split])]
        digest.update(struct.pack(f"<{len(numbers)}i", *numbers))
    return digest.hexdigest()


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-4])
    elif how == "shorter":
        np.save(path, np.load(path)[:-1])
    elif how == "other type":
        np.save(path, np.load(path).astype(np.int64))


def entries(cache_dir) -> list[str]:
    folders = (path.name for path in cache_dir.glob("*") if path.is_dir())
    return [name for name in folders if name != "files"]


def test_small_corpus(tmp_path, cache_dir):
    corpus = load_text(write_folder(tmp_path / "text"), cache_dir=cache_dir)
    assert corpus.name == "text"
    assert corpus.perplexity_floor is None
    for split, text in TEXTS.items():
        expected = ["<unk>" if w == "dog" else w for w in reference_tokens(text)]
        assert corpus.vocabulary.decode(getattr(corpus, split)) == expected
        assert corpus.num_tokens[split] == len(expected)
    assert corpus.vocabulary.words[:3] == ("<eos>", "=", "Title")
    assert corpus.sha256 == reference_sha256(TEXTS)


def test_ids_are_mapped_and_read_only(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")
    for _ in ("cold", "warm"):
        corpus = load_text(folder, cache_dir=cache_dir)
        for ids in (corpus.train, corpus.valid, corpus.test):
            assert isinstance(ids, np.memmap)
            assert ids.dtype == np.int32
            with pytest.raises(ValueError, match="read-only"):
                ids[0] = 1


def test_cached_by_content_not_by_path(tmp_path, cache_dir, monkeypatch):
    first = load_text(write_folder(tmp_path / "a"), cache_dir=cache_dir)
    other = {**TEXTS, "test": "the end\n"}
    changed = load_text(write_folder(tmp_path / "b", other), cache_dir=cache_dir)
    assert changed.sha256 == reference_sha256(other) != first.sha256
    moved_to_valid = {**TEXTS, "valid": TEXTS["test"], "test": TEXTS["valid"]}
    swapped = load_text(write_folder(tmp_path / "c", moved_to_valid), cache_dir=cache_dir)
    assert swapped.sha256 == reference_sha256(moved_to_valid)

    def forbidden(*args, **kwargs):
        raise AssertionError("built again")

    monkeypatch.setattr("lmbench.data.corpus.write_ids", forbidden)
    for split in TEXTS:
        (tmp_path / "b" / f"{split}.txt").rename(tmp_path / "b" / f"wiki.{split}.tokens")
    again = load_text(str(tmp_path / "b"), name="mine", cache_dir=str(cache_dir))
    assert (again.name, again.sha256) == ("mine", changed.sha256)
    assert load_text(tmp_path / "a", cache_dir=cache_dir).sha256 == first.sha256


def test_a_file_that_changes_in_place_is_read_again(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")
    load_text(folder, cache_dir=cache_dir)
    (folder / "valid.txt").write_text("sat cat \n")
    assert load_text(folder, cache_dir=cache_dir).num_tokens["valid"] == 3


def count_reads(monkeypatch) -> list[Path]:
    read: list[Path] = []
    original = corpus_module.read_blocks

    def noting(path: Path):
        read.append(path)
        return original(path)

    monkeypatch.setattr(corpus_module, "read_blocks", noting)
    return read


def test_a_file_that_did_not_change_is_not_read_again(tmp_path, cache_dir, monkeypatch):
    folder = write_folder(tmp_path / "text")
    for file in folder.iterdir():  # long ago, in nanoseconds
        os.utime(file, ns=(10**18, 10**18))
    first = load_text(folder, cache_dir=cache_dir)
    read = count_reads(monkeypatch)
    assert load_text(folder, cache_dir=cache_dir).sha256 == first.sha256
    assert read == []
    assert load_text(folder, cache_dir=cache_dir, verify=True).sha256 == first.sha256
    assert sorted(read) == sorted(folder.iterdir())
    (folder / "valid.txt").write_bytes(TEXTS["valid"].replace("dog", "cat").encode())
    os.utime(folder / "valid.txt", ns=(10**18 + 1, 10**18 + 1))  # as long as before
    assert load_text(folder, cache_dir=cache_dir).sha256 != first.sha256


def test_a_file_that_has_just_changed_is_read_again(tmp_path, cache_dir, monkeypatch):
    """It could change once more within the resolution of its clock."""
    folder = write_folder(tmp_path / "text")
    load_text(folder, cache_dir=cache_dir)
    read = count_reads(monkeypatch)
    load_text(folder, cache_dir=cache_dir)
    assert sorted(read) == sorted(folder.iterdir())


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, cache_dir, monkeypatch):
    """Else it would be in the cache as what it was before, for good."""
    folder = write_folder(tmp_path / "text")
    original = corpus_module.write_ids

    def change_and_write(*args, **options):
        (folder / "test.txt").write_text("cat sat \n")
        return original(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(corpus_module, "write_ids", change_and_write)
        with pytest.raises(UserError, match=r"test\.txt has changed .*data\.verify=true"):
            load_text(folder, cache_dir=cache_dir)
    assert entries(cache_dir) == []
    changed = load_text(folder, cache_dir=cache_dir)
    assert changed.sha256 == reference_sha256({**TEXTS, "test": "cat sat \n"})
    (folder / "test.txt").write_text(TEXTS["test"])
    assert load_text(folder, cache_dir=cache_dir).sha256 == reference_sha256(TEXTS)


def test_a_change_that_the_clock_does_not_show_is_not_cached_as_what_was(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")
    for file in folder.iterdir():
        os.utime(file, ns=(10**18, 10**18))
    first = load_text(folder, cache_dir=cache_dir)
    changed = {**TEXTS, "valid": TEXTS["valid"].replace("dog", "cat")}
    (folder / "valid.txt").write_bytes(changed["valid"].encode())
    os.utime(folder / "valid.txt", ns=(10**18, 10**18))
    assert load_text(folder, cache_dir=cache_dir).sha256 == first.sha256  # as documented
    for entry in cache_dir.glob("*/corpus.json"):
        entry.unlink()
    with pytest.raises(UserError, match=r"valid\.txt has changed .*data\.verify=true"):
        load_text(folder, cache_dir=cache_dir)
    for verify in (True, False):
        corpus = load_text(folder, cache_dir=cache_dir, verify=verify)
        assert corpus.sha256 == reference_sha256(changed)


def test_verify_finds_a_changed_id(tmp_path, cache_dir):
    """Which neither the summary nor the lengths show."""
    folder = write_folder(tmp_path / "text")
    whole = np.array(load_text(folder, cache_dir=cache_dir).train)
    (ids,) = cache_dir.glob("*/train.npy")
    content = bytearray(ids.read_bytes())
    content[-4] ^= 1
    ids.write_bytes(content)
    assert not np.array_equal(load_text(folder, cache_dir=cache_dir).train, whole)
    assert np.array_equal(load_text(folder, cache_dir=cache_dir, verify=True).train, whole)
    assert np.array_equal(load_text(folder, cache_dir=cache_dir).train, whole)


def test_a_changed_summary_is_not_believed(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")
    words = load_text(folder, cache_dir=cache_dir).vocabulary.words
    (summary,) = cache_dir.glob("*/corpus.json")
    summary.write_text(summary.read_text().replace('"cat"', '"dog"'))
    assert load_text(folder, cache_dir=cache_dir).vocabulary.words == words


def test_options_are_part_of_the_key(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")
    sizes = [
        len(load_text(folder, cache_dir=cache_dir, **options).vocabulary)
        for options in ({}, {"min_count": 2}, {"max_size": 5}, {"max_size": 2}, {})
    ]
    assert sizes == [8, 4, 5, 2, 8]


@pytest.mark.parametrize(
    ("file", "how"),
    [
        *product(("train.npy", "valid.npy", "test.npy", "corpus.json"), DAMAGES),
        *product(("train.npy", "test.npy"), ("shorter", "other type")),
    ],
)
def test_damaged_cache_is_rebuilt(tmp_path, cache_dir, file, how):
    folder = write_folder(tmp_path / "text")
    load_text(folder, cache_dir=cache_dir)
    (damaged,) = cache_dir.glob(f"*/{file}")
    damage(damaged, how)
    corpus = load_text(folder, cache_dir=cache_dir)
    assert corpus.sha256 == reference_sha256(TEXTS)
    assert corpus.vocabulary.decode(corpus.test) == reference_tokens(TEXTS["test"])
    assert [path.name for path in cache_dir.glob(f"*/{file}")] == [file]


@pytest.mark.parametrize("pattern", ["{}.txt", "{}.tokens", "wiki.{}.tokens", "ptb.{}.txt"])
def test_file_names(tmp_path, cache_dir, pattern):
    folder = write_folder(tmp_path / "text", pattern=pattern)
    assert load_text(folder, cache_dir=cache_dir).sha256 == reference_sha256(TEXTS)


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "text")
    assert load_text("~/text", cache_dir="~/cache").num_tokens["train"] == 13
    assert (tmp_path / "cache").is_dir()


def test_what_is_wrong_with_the_folder(tmp_path, cache_dir):
    def message(path, **options):
        with pytest.raises(UserError) as caught:
            load_text(path, cache_dir=cache_dir, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "nowhere does not exist" in message(tmp_path / "nowhere")
    folder = write_folder(tmp_path / "text")
    assert "train.txt is a file, not a folder" in message(folder / "train.txt")
    assert "data.min_count must be 1 or more, not 0" in message(folder, min_count=0)
    assert "data.max_size must be 2" in message(folder, max_size=1)
    assert "cannot be read: File name too long" in message(tmp_path / ("x" * 300))

    (folder / "wiki.valid.tokens").write_text("a\n")
    assert "valid.txt and wiki.valid.tokens" in message(folder)
    (folder / "wiki.valid.tokens").unlink()

    (folder / "test.txt").write_bytes(b"")
    assert f"{folder}: no text in test" in message(folder)
    (folder / "test.txt").write_bytes(b"a\n\xe9\n")
    assert "test.txt is not UTF-8: byte 0xe9 at byte offset 2" in message(folder)
    (folder / "test.txt").rename(folder / "validation.txt")
    missing = message(folder)
    assert "no test split: looked for test.txt, test.tokens, wiki.test.tokens" in missing
    assert "there is train.txt, valid.txt, validation.txt" in missing
    assert entries(cache_dir) == []


def test_a_folder_that_may_not_be_read(tmp_path, cache_dir, monkeypatch):
    monkeypatch.setattr(Path, "iterdir", Mock(side_effect=PermissionError(13, "Not permitted")))
    with pytest.raises(UserError, match=r"cannot be read: Not permitted\. Set data\.path="):
        load_text(tmp_path, cache_dir=cache_dir)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are UTF-8")
def test_a_folder_whose_name_is_not_utf8(tmp_path, cache_dir):
    folder = write_folder(tmp_path / os.fsdecode(b"caf\xe9"))
    assert load_text(folder, cache_dir=cache_dir).sha256 == reference_sha256(TEXTS)


def test_a_file_that_is_a_link_to_itself(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")
    (folder / "valid.txt").unlink()
    (folder / "valid.txt").symlink_to("valid.txt")
    with pytest.raises(UserError, match=r"valid\.txt cannot be read: Too many levels of symbolic"):
        load_text(folder, cache_dir=cache_dir)


FULL_DISK = """
import resource, sys
import pyarrow.compute  # later, its compiled Python files could not be written
from lmbench.data.corpus import load_text
from lmbench.errors import UserError

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    load_text(sys.argv[1], cache_dir=sys.argv[2])
except UserError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [0, 100, 3000, 20_000])
def test_full_disk(tmp_path, cache_dir, num_bytes):
    """Full before the first byte, in a header, in the ids of training, in the words."""
    texts = {**TEXTS, "train": TEXTS["train"] + " ".join(f"word{n}" for n in range(2500))}
    folder = write_folder(tmp_path / "text", texts)
    command = [sys.executable, "-c", FULL_DISK, folder, cache_dir, str(num_bytes)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert f"The corpus cache in {cache_dir} cannot be written: File too large." in result.stdout
    assert "data.cache_dir=" in result.stdout
    assert entries(cache_dir) == []
    assert load_text(folder, cache_dir=cache_dir).sha256 == reference_sha256(texts)


def test_unknown_words_without_unk(tmp_path, cache_dir):
    texts = {"train": "a b b\n", "valid": "a c\n", "test": "a\n"}
    folder = write_folder(tmp_path / "text", texts)
    message = r"text: 1 of 3 tokens .* valid .*'c'.*data=text with data\.min_count=2"
    with pytest.raises(UserError, match=message):
        load_text(folder, cache_dir=cache_dir)
    corpus = load_text(folder, cache_dir=cache_dir, min_count=2)
    assert corpus.vocabulary.words == ("<unk>", "b", "<eos>")


def test_corpus_by_hand():
    ids = np.array([0, 1, 0], dtype=np.int32)
    corpus = Corpus("synthetic", Vocabulary(("a", "<eos>")), ids, ids[:2], ids[1:])
    digest = hashlib.sha256(b"a\n<eos>\n" + bytes([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]))
    digest.update(bytes([0, 0, 0, 0, 1, 0, 0, 0]) + bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    assert corpus.sha256 == digest.hexdigest()
    assert corpus.num_tokens == {"train": 3, "valid": 2, "test": 2}
    assert not corpus.train.flags.writeable
    assert ids.flags.writeable  # the caller's own stays as it was
    assert len(repr(corpus)) < 200


@pytest.mark.parametrize("wrong", [np.zeros(3, dtype=np.int64), np.zeros((3, 1), dtype=np.int32)])
def test_corpus_refuses_other_arrays(wrong):
    ids = np.zeros(3, dtype=np.int32)
    with pytest.raises(ValueError, match="valid must be 1-D int32"):
        Corpus("synthetic", Vocabulary(("a",)), ids, wrong, ids)


@needs_wikitext2
def test_wikitext2(cache_dir, monkeypatch):
    corpus = load_wikitext2(WIKITEXT2, cache_dir=cache_dir)
    assert corpus.name == "wikitext2"
    assert corpus.num_tokens == {"train": 2_088_628, "valid": 217_646, "test": 245_569}
    assert len(corpus.vocabulary) == 33_278
    texts = {split: (WIKITEXT2 / f"{split}.txt").read_bytes().decode() for split in TEXTS}
    assert corpus.vocabulary.decode(corpus.valid) == reference_tokens(texts["valid"])
    assert corpus.sha256 == reference_sha256(texts)

    monkeypatch.setenv("LMBENCH_DATA_DIR", str(WIKITEXT2.parent))
    assert load_wikitext2(cache_dir=cache_dir).sha256 == corpus.sha256


def test_another_corpus_is_not_wikitext2(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")
    with pytest.raises(UserError) as caught:
        load_wikitext2(folder, cache_dir=cache_dir)
    message = str(caught.value)
    assert "13 / 5 / 5 tokens and 8 types" in message
    assert "2,088,628 / 217,646 / 245,569 tokens and 33,278 types" in message
    assert "data=text" in message


def test_another_corpus_is_not_the_penn_treebank(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")
    with pytest.raises(UserError) as caught:
        load_penn_treebank(folder, cache_dir=cache_dir)
    message = str(caught.value)
    assert "is not the word-level Penn Treebank: it has 13 / 5 / 5 tokens and 8 types" in message
    assert "929,589 / 73,760 / 82,430 tokens and 10,000 types" in message


def test_a_corpus_with_the_counts_of_the_penn_treebank(tmp_path, cache_dir):
    """9,999 words and <eos>, in lines of ten tokens each but the last."""
    counts = {"train": 929_589, "valid": 73_760, "test": 82_430}
    for split, count in counts.items():
        num_lines = -(-count // 10)
        num_words = count - num_lines
        words = [f"w{index % 9999}" for index in range(num_words)]
        lines = [" ".join(words[start : start + 9]) for start in range(0, num_words, 9)]
        (tmp_path / f"ptb.{split}.txt").write_text("\n".join(lines) + "\n", "utf-8")
    corpus = load_penn_treebank(tmp_path, cache_dir=cache_dir)
    assert (corpus.name, corpus.num_tokens) == ("penn_treebank", counts)
    assert len(corpus.vocabulary) == 10_000


def test_data_dir_without_wikitext2(tmp_path, cache_dir, monkeypatch):
    monkeypatch.setenv("LMBENCH_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"LMBENCH_DATA_DIR is .*no folder .*/wikitext-2"):
        load_wikitext2(cache_dir=cache_dir)
    write_folder(tmp_path / "wikitext-2")
    with pytest.raises(UserError, match=r"/wikitext-2 is not the word-level WikiText-2"):
        load_wikitext2(cache_dir=cache_dir)
