import hashlib
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from texts import reference_tokens

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


def write_folder(folder, texts=TEXTS, pattern="{}.txt"):
    folder.mkdir()
    for split, text in texts.items():
        (folder / pattern.format(split)).write_bytes(text.encode())
    return folder


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


def test_small_corpus(tmp_path, cache_dir):
    corpus = load_text(write_folder(tmp_path / "text"), cache_dir=cache_dir)
    assert corpus.name == "text"
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


@pytest.mark.parametrize("file", ["corpus.json", "train.bin", "valid.bin", "test.bin"])
@pytest.mark.parametrize("damage", ["deleted", "cut", "flipped", "{}", "[" * 100_000])
def test_a_damaged_cache_is_made_anew(tmp_path, cache_dir, file, damage):
    folder = write_folder(tmp_path / "text")
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


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, cache_dir, monkeypatch):
    """Otherwise the cache would keep the new text under the old one's key for good."""
    folder = write_folder(tmp_path / "text")
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


def test_options_are_part_of_the_key(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")
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


def test_shares_of_a_text_that_is_split_already_do_nothing(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")
    corpus = load_text(folder, cache_dir=cache_dir, test_share=0.1)
    assert corpus.sha256 == reference_sha256(TEXTS)
    assert "is split already" in corpus.notes[0]


@pytest.mark.parametrize("pattern", ["{}.txt", "{}.tokens", "wiki.{}.tokens", "ptb.{}.txt"])
def test_file_names(tmp_path, cache_dir, pattern):
    folder = write_folder(tmp_path / "text", pattern=pattern)
    assert load_text(folder, cache_dir=cache_dir).sha256 == reference_sha256(TEXTS)


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "text")
    assert load_text("~/text", cache_dir="~/cache").num_tokens["train"] == 13
    assert (tmp_path / "cache").is_dir()


def test_the_error_says_what_is_wrong_with_the_folder(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")

    def refuse(message: str, path: Path = folder) -> None:
        with pytest.raises(UserError, match=message) as caught:
            load_text(path, cache_dir=cache_dir)
        assert "\n" not in str(caught.value)

    refuse("nowhere cannot be read: No such file", tmp_path / "nowhere")
    refuse("cannot be read: File name too long", tmp_path / ("x" * 300))
    (folder / "wiki.valid.tokens").write_text("a\n")
    refuse("valid split: .* It has valid.txt, wiki.valid.tokens. ")
    (folder / "wiki.valid.tokens").unlink()
    (folder / "test.txt").write_bytes(b"")
    refuse(f"{folder}: no text in test")
    (folder / "test.txt").write_bytes(b"a\n\xe9\n")
    refuse("test.txt is not UTF-8: byte 0xe9 at byte offset 2")
    (folder / "test.txt").rename(folder / "validation.txt")
    (folder / ".hidden").touch()
    refuse("test split: test.txt or test.tokens .* It has train.txt, valid.txt, validation.txt. ")
    assert entries(cache_dir) == []


@pytest.mark.parametrize(
    "option",
    [
        {"min_count": 0},
        {"max_size": 1},
        {"valid_share": 0},
        {"test_share": 0.5},
        {"valid_share": float("nan")},
    ],
)
def test_options_out_of_range(tmp_path, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"^{name} must be .* not {option[name]}$"):
        load_text(write_folder(tmp_path / "text"), **option)


@pytest.mark.parametrize("num_bytes", [0, 3000, 20_000])
def test_full_disk(tmp_path, cache_dir, num_bytes):
    """Full before the first byte, in the training ids, or in the words."""
    texts = {**TEXTS, "train": TEXTS["train"] + " ".join(f"word{n}" for n in range(2500))}
    folder = write_folder(tmp_path / "text", texts)
    WhiteSpace().cut_block(
        b""
    )  # imports Arrow, whose compiled Python files could not be written later
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        with pytest.raises(UserError) as caught:
            load_text(folder, cache_dir=cache_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for part in (f"cache in {cache_dir} cannot be written: File too large", "data.cache_dir="):
        assert part in str(caught.value)
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
    assert (again.sha256, again.notes, again.vocabulary) == (
        corpus.sha256,
        corpus.notes,
        corpus.vocabulary,
    )
    parts = ("split: the end of the text", "data.tokenizer=none", "179 words")  # 1 is in every line
    assert all(part in note for part, note in zip(parts, corpus.notes, strict=True))


def test_text_with_unk_is_taken_as_it_is(tmp_path, cache_dir):
    folder = write_folder(tmp_path / "text")
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


def test_the_error_says_what_is_wrong_with_a_text(tmp_path, cache_dir):
    def refuse(message: str, path: Path) -> None:
        with pytest.raises(UserError, match=message) as caught:
            load_text(path, cache_dir=cache_dir, tokenizer=Auto())
        assert "\n" not in str(caught.value)

    file = tmp_path / "text.txt"
    file.write_text("ten words are not enough for any model at all")
    refuse(r"text\.txt is too small to be split: ", file)
    file.write_bytes(b"")
    refuse(r"text\.txt is too small to be split: ", file)
    file.write_bytes("caf\xe9\n".encode("latin-1") * 1000)
    refuse(r"text\.txt is not UTF-8: byte 0xe9 at byte offset 3, .* iconv ", file)
    folder = tmp_path / "folder"
    folder.mkdir()
    refuse("folder must have one file for the train split: .* It has no file", folder)
    (folder / "thesis.docx").write_bytes(b"PK\x03\x04")
    refuse(r"folder must have .* It has thesis\.docx\. .* \.txt files", folder)
    assert entries(cache_dir) == []


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
