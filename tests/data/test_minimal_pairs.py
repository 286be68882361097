"""Files of minimal pairs, as they are published and as people write their own."""

import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from lmbench.data.minimal_pairs import Pair, read_pairs
from lmbench.errors import UserError

BLIMP = {
    "sentence_good": "Dogs bark.",
    "sentence_bad": "Dogs barks.",
    "field": "morphology",
    "linguistics_term": "agreement",
    "UID": "agreement_1",
    "pairID": "0",
}


def json_line(**changes: object) -> bytes:
    return f"{json.dumps(BLIMP | changes)}\n".encode()


def test_json_lines_as_in_blimp(tmp_path: Path):
    path = tmp_path / "agreement_1.jsonl"
    bare = {"sentence_good": "a", "sentence_bad": "b", "field": "syntax_semantics"}
    path.write_bytes(json_line() + json.dumps(bare).encode())
    found = read_pairs(path)
    assert found.name == "agreement_1"
    assert found.pairs == [
        Pair("Dogs bark.", "Dogs barks.", "agreement_1", "agreement", "morphology"),
        Pair("a", "b", "agreement_1", None, "syntax/semantics"),
    ]


def test_lines_with_tabs(tmp_path: Path):
    path = tmp_path / "my pairs.tsv"
    path.write_bytes("\ufeffgood é\tbad\r\n\na b\tb a\torder\ta phenomenon\tsyntax\n".encode())
    found = read_pairs(path)
    assert found.name == "my pairs"
    assert found.pairs == [
        Pair("good é", "bad", "my pairs"),
        Pair("a b", "b a", "order", "a phenomenon", "syntax"),
    ]


def test_a_folder_and_an_archive_of_it_give_the_same_pairs(tmp_path: Path):
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "data/b.jsonl").write_bytes(json_line())
    (folder / "data/a.tsv").write_text("a\tb\n", "utf-8")
    (folder / "README.md").write_text("not a pair", "utf-8")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/data/._b.jsonl", b"\x00\x05\x16\x07")
    (folder / "data/._b.jsonl").write_bytes(b"\x00\x05\x16\x07")  # as unzipped
    (in_folder, in_archive) = read_pairs(folder), read_pairs(tmp_path / "set.zip")
    assert [pair.paradigm for pair in in_folder.pairs] == ["a", "agreement_1"]
    assert in_archive.pairs == in_folder.pairs
    assert in_archive.sha256 == in_folder.sha256
    assert in_archive.name == in_folder.name == "set"
    (folder / "data/a.tsv").write_text("a\tc\n", "utf-8")
    assert read_pairs(folder).sha256 != in_folder.sha256


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"sentence_good": "a"}\n', "line 1 is damaged: it has no 'sentence_bad'"),
        ("x.jsonl", b"\n[1]\n", "line 2 is damaged: it is not an object"),
        ("x.jsonl", b"{\n", "line 1 is damaged: Expecting property name"),
        ("x.jsonl", json_line(field=3), "line 1 is damaged: a value is not a string"),
        ("x.jsonl", json_line(sentence_good=None), "line 1 is damaged: a value is not a string"),
        ("x.tsv", b"a\tb\na b\n", "line 2 is damaged: it has 0 tabs, not one to four"),
        ("x.tsv", b"a\tb\tc\td\te\tf\n", "line 1 is damaged: it has 5 tabs, not one to four"),
        ("x.tsv", b"Good\tBad\tUID\na\tb\n", "line 1 is damaged: it names the columns. Remove"),
        ("x.tsv", b"sentence_good\tsentence_bad\n", "it names the columns. Remove it."),
        ("x.tsv", b"a\t \n", "line 1 is damaged: a sentence is empty"),
        ("x.tsv", b"a\tb\xe9\n", "cannot be read: 'utf-8' codec can't decode byte 0xe9"),
        ("x.tsv", b"\n", "holds no minimal pairs"),
        ("x.zip", b"no archive", "is damaged: File is not a zip file"),
    ],
)
def test_what_is_not_a_pair_is_refused(tmp_path: Path, name: str, content: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_pairs(path)
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)


def test_a_damaged_archive_is_refused(tmp_path: Path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", json_line() * 100)
    content = path.read_bytes()
    for place in range(35, 100):  # after the header of the file in it
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"set\.zip"):
            read_pairs(path)


def test_an_encrypted_archive_is_refused(tmp_path: Path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jsonl", json_line())
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the archive's directory
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"set\.zip is damaged: .*encrypted"):
        read_pairs(path)


def test_missing_pairs_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.zip cannot be read: No such file"):
        read_pairs(tmp_path / "nowhere.zip")
    with pytest.raises(UserError, match="holds no minimal pairs"):
        read_pairs(tmp_path)


def test_what_is_no_regular_file_of_the_folder_is_refused(tmp_path: Path):
    folder = tmp_path / "set"
    folder.mkdir()
    os.mkfifo(folder / "a.tsv")  # reading it would wait for ever
    with pytest.raises(UserError, match=r"a\.tsv"):
        read_pairs(folder)
    (folder / "a.tsv").unlink()
    (tmp_path / "outside.tsv").write_text("a\tb\n")
    (folder / "a.tsv").symlink_to(tmp_path / "outside.tsv")
    with pytest.raises(UserError, match=r"a\.tsv is a link that leads out"):
        read_pairs(folder)


def test_a_line_of_any_length_takes_little_memory(tmp_path: Path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.tsv", b"a\tb\n" + b"x" * 50_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"a\.tsv, line 2"):
            read_pairs(path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
