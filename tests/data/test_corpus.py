import gzip
import hashlib
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from texts import reference_tokens, write_splits

from lmbench.data import corpus as corpus_module
from lmbench.data.corpus import load_text
from lmbench.data.tokenizer.auto import Auto
from lmbench.data.tokenizer.moses import Moses
from lmbench.data.tokenizer.words import WhiteSpace
from lmbench.errors import UserError

TEXTS = {
    "train": " \n = Title = \n \n the cat sat on the <unk> \n",
    "valid": " \n the dog sat \n",
    "test": " = cat = \n \n",
}


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    return write_splits(tmp_path / "text", TEXTS)


def reference_sha256(texts) -> str:
    words = list(dict.fromkeys(reference_tokens(texts["train"])))
    ids = {word: number for number, word in enumerate(words)}
    digest = hashlib.sha256("".join(f"{word}\n" for word in words).encode())
    for split in ("train", "valid", "test"):
        numbers = [ids.get(word, ids.get("<unk>")) for word in reference_tokens(texts[split])]
        digest.update(struct.pack(f"<{len(numbers)}i", *numbers))
    return digest.hexdigest()


def entries(cache_dir) -> list[str]:
    return [path.name for path in cache_dir.glob("*") if path.is_dir()]


def test_small_corpus(folder, cache_dir):
    corpus = load_text(folder, cache_dir=cache_dir)
    assert corpus.name == "text/"
    assert corpus.perplexity_floor is None
    for split, text in TEXTS.items():
        expected = ["<unk>" if w == "dog" else w for w in reference_tokens(text)]
        assert corpus.vocabulary.decode(getattr(corpus, split)) == expected
        assert corpus.num_tokens[split] == len(expected)
        assert isinstance(getattr(corpus, split), np.memmap)
        assert not getattr(corpus, split).flags.writeable
    assert corpus.vocabulary.words[:3] == ("<eos>", "=", "Title")
    assert corpus.sha256 == reference_sha256(TEXTS)


def test_cached_by_content_not_by_path(tmp_path, cache_dir, monkeypatch):
    first = load_text(write_splits(tmp_path / "a", TEXTS), cache_dir=cache_dir)
    other = {**TEXTS, "test": "the end\n"}
    changed = load_text(write_splits(tmp_path / "b", other), cache_dir=cache_dir)
    assert changed.sha256 == reference_sha256(other) != first.sha256
    moved_to_valid = {**TEXTS, "valid": TEXTS["test"], "test": TEXTS["valid"]}
    swapped = load_text(write_splits(tmp_path / "c", moved_to_valid), cache_dir=cache_dir)
    assert swapped.sha256 == reference_sha256(moved_to_valid)

    def forbidden(*args, **kwargs):
        raise AssertionError("built again")

    monkeypatch.setattr("lmbench.data.corpus.write_ids", forbidden)
    for split in TEXTS:
        (tmp_path / "b" / f"{split}.txt").rename(tmp_path / "b" / f"wiki.{split}.tokens")
    again = load_text(str(tmp_path / "b"), name="mine", cache_dir=str(cache_dir))
    assert (again.name, again.sha256) == ("mine", changed.sha256)
    assert load_text(tmp_path / "a", cache_dir=cache_dir).sha256 == first.sha256


@pytest.mark.parametrize("file", ["corpus.json", "train.bin", "valid.bin", "test.bin"])
@pytest.mark.parametrize("damage", ["deleted", "cut", "flipped", "{}", "[" * 100_000])
def test_a_damaged_cache_is_made_anew(folder, cache_dir, file, damage):
    load_text(folder, cache_dir=cache_dir)
    (path,) = cache_dir.glob(f"*/{file}")
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-4])
    elif damage == "flipped":
        path.write_bytes(content[:5] + bytes([content[5] ^ 1]) + content[6:])
    else:
        path.write_text(damage)
    corpus = load_text(folder, cache_dir=cache_dir)
    assert corpus.sha256 == reference_sha256(TEXTS)
    assert path.read_bytes() == content


def test_a_file_that_changes_while_it_is_read_is_refused(folder, cache_dir, monkeypatch):
    """Otherwise the cache would keep the new text under the old one's key for good."""
    original = corpus_module.write_ids

    def change_and_write(*args, **options):
        (folder / "test.txt").write_text("cat sat \n")
        return original(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(corpus_module, "write_ids", change_and_write)
        with pytest.raises(UserError, match=rf"{folder} changed"):
            load_text(folder, cache_dir=cache_dir)
    assert entries(cache_dir) == []
    changed = load_text(folder, cache_dir=cache_dir)
    assert changed.sha256 == reference_sha256({**TEXTS, "test": "cat sat \n"})


def test_options_are_part_of_the_key(folder, cache_dir):
    sizes = [
        len(load_text(folder, cache_dir=cache_dir, **options).vocabulary)
        for options in ({}, {"min_count": 2}, {"max_size": 5}, {"max_size": 2}, {})
    ]
    assert sizes == [8, 4, 5, 2, 8]
    one_file = folder / "train.txt"
    one_file.write_text("It's red-hot, he said. \n" * 200)
    assert [
        load_text(one_file, cache_dir=cache_dir, tokenizer=tokenizer).vocabulary.words[0]
        for tokenizer in (WhiteSpace(), Moses(), Moses("fr"), WhiteSpace())
    ] == ["It's", "It", "It'", "It's"]
    assert [
        list(load_text(one_file, cache_dir=cache_dir, **shares).num_tokens.values())
        for shares in ({}, {"valid_share": 0.1}, {"test_share": 0.1})
    ] == [[900, 50, 50], [850, 100, 50], [850, 50, 100]]


def test_shares_of_a_text_that_is_split_already_do_nothing(folder, cache_dir):
    corpus = load_text(folder, cache_dir=cache_dir, test_share=0.1)
    assert corpus.sha256 == reference_sha256(TEXTS)
    assert "is split already" in corpus.notes[0]


@pytest.mark.parametrize("pattern", ["{}.txt", "{}.tokens", "wiki.{}.tokens", "ptb.{}.txt"])
def test_file_names(tmp_path, cache_dir, pattern):
    folder = write_splits(tmp_path / "text", TEXTS, pattern)
    assert load_text(folder, cache_dir=cache_dir).sha256 == reference_sha256(TEXTS)


def test_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_text("~/text", cache_dir="~/cache").num_tokens["train"] == 13
    assert (tmp_path / "cache").is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wiki.valid.tokens": b"a"}, "valid split: .* It has valid.txt, wiki.valid.tokens. "),
        ({"test.txt": b""}, "text: no text in test"),
        ({"test.txt": b"a\n\xe9\n"}, "test.txt is not UTF-8: byte 0xe9 at byte offset 2"),
        (
            {"test.txt": None, ".hidden": b"", "validation.txt": b""},
            "test split: test.txt or test.tokens .* It has train.txt, valid.txt, validation.txt. ",
        ),
        (dict.fromkeys(("train.txt", "valid.txt", "test.txt")), "train split: .* It has no file"),
        (
            {"train.txt": None, "valid.txt": None, "test.txt": None, "a.docx": b"PK"},
            r"train split: .* It has a\.docx\. .* \.txt files of other names",
        ),
    ],
)
def test_the_error_says_what_is_wrong_with_the_folder(folder, cache_dir, change, message):
    for name, content in change.items():
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_text(folder, cache_dir=cache_dir)
    assert "\n" not in str(caught.value)
    assert entries(cache_dir) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ten words are not enough for any model at all", r"x\.txt is too small to be split: "),
        (b"", r"x\.txt is too small to be split: "),
        (b"caf\xe9\n" * 1000, r"x\.txt is not UTF-8: byte 0xe9 at byte offset 3, .* iconv "),
        (
            gzip.compress(b"a b\n" * 1000),
            r"x\.txt is not text, but a gzip archive: ",
        ),
        (b"%PDF-1.7\n%\xe2\xe3", r"x\.txt is not text, but a PDF: extract the text first\."),
        (None, r"x\.txt cannot be read: No such file.*data\.path="),
    ],
)
def test_the_error_says_what_is_wrong_with_a_text(tmp_path, cache_dir, content, message):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_text(tmp_path / "x.txt", cache_dir=cache_dir, tokenizer=Auto())
    assert "\n" not in str(caught.value)
    assert entries(cache_dir) == []


@pytest.mark.parametrize(
    "option",
    [
        *({"min_count": 0}, {"max_size": 1}, {"test_share": 0.5}),
        *({"valid_share": share} for share in (0, float("nan"))),
    ],
)
def test_options_out_of_range(folder, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"^{name} must be .* not {option[name]}$"):
        load_text(folder, **option)


@pytest.mark.parametrize("num_bytes", [0, 3000, 20_000])
def test_full_disk(tmp_path, cache_dir, num_bytes):
    """Full before the first byte, in the training ids, or in the words."""
    texts = {**TEXTS, "train": TEXTS["train"] + " ".join(f"word{n}" for n in range(2500))}
    folder = write_splits(tmp_path / "text", texts)
    WhiteSpace().cut_block(b"")  # imports Arrow, which could not write its compiled files later
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        with pytest.raises(UserError, match=rf"{cache_dir} .*: File too large.*data\.cache_dir="):
            load_text(folder, cache_dir=cache_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert entries(cache_dir) == []


def test_running_text_in_one_file(tmp_path, cache_dir):
    """All that happens automatically: splitting, separating punctuation and making <unk>."""
    lines = [f"It's the number {n}, of course: 1,000!" for n in range(200)]
    (tmp_path / "novel.txt").write_text("\n".join(lines))
    corpus = load_text(tmp_path / "novel.txt", cache_dir=cache_dir, tokenizer=Auto())
    assert corpus.vocabulary.tokenizer == Moses()
    words = "It 's the number <unk> , of course : 1 @,@ 000 ! <eos>"
    train = words.split()
    assert corpus.vocabulary.words == tuple(dict.fromkeys(train))
    assert list(corpus.num_tokens.values()) == [lines * len(train) for lines in (180, 10, 10)]
    assert corpus.vocabulary.decode(corpus.train[: len(train)]) == train
    again = load_text(tmp_path / "novel.txt", cache_dir=cache_dir, tokenizer=Auto())
    for name in ("sha256", "notes", "vocabulary"):
        assert getattr(again, name) == getattr(corpus, name)
    parts = (
        "split: the end of the text",
        "data.tokenizer=none",
        "179 words",  # 1 is in every line
        "100% of valid's lines",  # all lines are the same now
        "100% of test's lines",
    )
    assert all(part in note for part, note in zip(parts, corpus.notes, strict=True))


def test_text_with_unk_is_taken_as_it_is(folder, tmp_path, cache_dir):
    corpus = load_text(folder, cache_dir=cache_dir, tokenizer=Auto())
    assert (corpus.sha256, corpus.vocabulary.tokenizer) == (reference_sha256(TEXTS), WhiteSpace())
    file = tmp_path / "one.txt"
    file.write_text("a, b <unk> \n" * 100)
    assert load_text(file, cache_dir=cache_dir, tokenizer=Auto()).vocabulary.words[0] == "a,"


def test_a_folder_of_documents(tmp_path, cache_dir):
    """Including those in subfolders, in whatever order the file system lists them."""
    for number in range(200):
        folder = tmp_path / "text" / f"part {number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.TXT").write_text(f"d{number} e f\n")
    (tmp_path / "text/.hidden.txt").write_text("hidden\n")
    (tmp_path / "text/notes.md").write_bytes(b"\xff")
    corpus = load_text(tmp_path / "text", cache_dir=cache_dir, min_count=1, max_size=150)
    assert sum(corpus.num_tokens.values()) == 800
    assert 36 <= corpus.num_tokens["valid"] <= 44
    assert "hidden" not in corpus.vocabulary.words
    assert {"e", "f", "<unk>"} < set(corpus.vocabulary.words)


@pytest.mark.parametrize(
    ("train", "other"),
    [("train/1.txt", "test/1.txt"), ("training.txt", "my.dev.txt"), ("a_Train.txt", "a_Valid.txt")],
)
def test_a_folder_whose_file_names_mention_splits_is_not_pooled(
    tmp_path: Path, train: str, other: str
):
    for name in (train, other):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a b c\n" * 100)
    with pytest.raises(UserError, match=f"{train} and {other} look like parts"):
        load_text(tmp_path, cache_dir=tmp_path / "cache")


def test_titles_with_the_name_of_one_split_are_pooled(tmp_path: Path):
    for name in ("A Test of Wills.txt", "contest.txt", "Trained.txt"):
        (tmp_path / name).write_text("a b c\n" * 100)
    corpus = load_text(tmp_path, cache_dir=tmp_path / "cache")
    assert sum(corpus.num_tokens.values()) == 3 * 400


def test_a_split_that_stands_in_train_is_noted(tmp_path, cache_dir):
    lines = [f"{word} b c d e f g h i\n" for word in "jklmnopqrs"]
    texts = {
        "train": "".join(lines) + "<unk>\n",
        "valid": "".join(reversed(lines)),
        "test": lines[0] + 10 * "a line that nobody has seen anywhere before today\n",
    }
    notes = load_text(write_splits(tmp_path / "texts", texts), cache_dir=cache_dir).notes
    (note,) = (note for note in notes if "stand in train" in note)  # 1 of 11 of test is too few
    assert note.startswith("100% of valid's lines also stand in train")
