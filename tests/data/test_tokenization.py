import io
import tracemalloc

import numpy as np
import pytest

from lmbench.data.tokenization import read_blocks, read_parts, tokenize, write_ids
from lmbench.errors import UserError

ODD_TEXTS = {
    "plain": "a b\nc a\n",
    "no final newline": "a b\nc",
    "only blank lines": "\n\n \n\t\n",
    "carriage returns": "a b\r\n\r\nc\rd\r\n",
    "null": "a\x00b \x00 c\n\x00\n",
    "byte order mark": "\ufeffa b\n\ufeffa\n",
    "tabs and runs of spaces": "\t a  \t b   \n   c\t\n",
    "separators that end a line elsewhere": "a\u2028b\u2029c\x0bd\x0ce\x1cf\x1dg\x1eh\x85i\n",
    "other white space": "\xa0a\xa0b\u3000c\u2009d\u1680e\x1ff\u202f\n\xa0\xa0\n",
    "no white space": "a\u200bb\u2060c\u180ed\n",
    "eos in the text": "a <eos> b\n<eos>\n",
    "many bytes": "ä€😀 e\u0301 日本 語\n😀😀\n",
}


def reference_tokens(path) -> list[str]:
    tokens = []
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            tokens += [*line.split(), "<eos>"]
    return tokens


def write(path, text: str):
    path.write_bytes(text.encode())
    return path


def encode_file(path, folder, block_bytes: int):
    """Words and ids of each split of a corpus that has the same file three times."""
    folder.mkdir()
    blocks = {split: read_blocks(path, block_bytes) for split in ("train", "valid", "test")}
    vocabulary = write_ids(folder, blocks, source="here")
    return vocabulary, [np.load(folder / f"{split}.npy") for split in blocks]


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_odd_texts_at_every_block_size(tmp_path, text):
    path = write(tmp_path / "odd.txt", text)
    expected = reference_tokens(path)
    for block_bytes in (*range(1, len(text.encode()) + 2), 2**20):
        vocabulary, splits = encode_file(path, tmp_path / str(block_bytes), block_bytes)
        assert vocabulary.words == tuple(dict.fromkeys(expected))
        for ids in splits:
            assert ids.dtype == np.int32
            assert vocabulary.decode(ids) == expected


def test_every_character_splits_as_in_python():
    for first in range(1, 0x30000, 0x1000):
        characters = [chr(c) for c in range(first, first + 0x1000) if not 0xD800 <= c < 0xE000]
        text = "\n".join(f"x{c}y" for c in characters if c != "\n")
        types, places = tokenize(text.encode())
        expected = [w for line in text.split("\n") for w in [*line.split(), "<eos>"]]
        if text:
            assert [types[place] for place in places] == expected


def test_every_length_of_text():
    """Arrow pads its buffers to 64 bytes, and must not look behind a text that fills one."""
    for length in range(1, 400):
        text = ("wört " * length).encode()[:length].decode(errors="ignore")
        expected = [*text.split(), "<eos>"]
        for block in (text, text + "\n"):
            for _ in range(5):
                types, places = tokenize(block.encode())
                assert [types[place] for place in places] == expected


def test_blocks_are_whole_lines(tmp_path):
    text = "aé\n\nlonger line\nend"
    path = write(tmp_path / "text.txt", text)
    for block_bytes in range(1, 30):
        blocks = list(read_blocks(path, block_bytes))
        assert b"".join(blocks) == text.encode()
        assert all(block.endswith(b"\n") for block in blocks[:-1])
    assert len(list(read_blocks(path, 1))) == 3


def test_ids_of_many_blocks_agree_with_one(tmp_path):
    words = np.random.default_rng(0).integers(0, 500, size=4000)
    path = write(
        tmp_path / "text.txt", "".join(f"wört{w}{' ' if w % 9 else chr(10)}" for w in words)
    )
    one, many = (encode_file(path, tmp_path / str(size), size) for size in (2**20, 100))
    assert one[0] == many[0]
    np.testing.assert_array_equal(one[1], many[1])


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"abc\nab\xff", 6),
        (b"\xef\xbb\xbfabc\n\x80", 7),
        (b"ok\n" * 10 + b"caf\xe9\n", 33),
        (b"cut \xe2\x82", 4),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 4, 1000])
def test_not_utf8_names_file_and_offset(tmp_path, content, offset, block_bytes):
    path = tmp_path / "latin1.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"latin1\.txt is not UTF-8: .*offset {offset} "):
        list(read_blocks(path, block_bytes))


def test_unreadable_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.txt cannot be read: No such file"):
        list(read_blocks(tmp_path / "gone.txt"))


@pytest.mark.parametrize("empty", ["train", "valid", "test"])
@pytest.mark.parametrize("content", [[], [b""]])
def test_empty_split(tmp_path, empty, content):
    blocks = {"train": [b"a\n"], "valid": [b"a\n"], "test": [b"a\n"], empty: content}
    with pytest.raises(UserError, match=rf"here: no text in .*{empty}"):
        write_ids(tmp_path, blocks, source="here")


def test_unknown_words_without_unk(tmp_path):
    blocks = {
        "train": [b"a a b b b\na a b\n"],
        "valid": [b"a new b\n", b"new\n"],
        "test": [b"a b newer\n" + b"a\n" * 2],
    }
    with pytest.raises(UserError) as caught:
        write_ids(tmp_path, blocks, source="here")
    message = str(caught.value)
    assert "2 of 6 tokens (33.33%) in valid" in message
    assert "1 of 8 tokens (12.50%) in test" in message
    assert "'new', 'newer'" in message
    assert "data.min_count=5" in message
    assert "data.max_size below 3" in message
    assert "\n" not in message


def test_the_limits_that_the_message_names_help(tmp_path):
    blocks = {"train": [b"a a a b b c\n"], "valid": [b"d\n"], "test": [b"a\n"]}
    with pytest.raises(UserError, match=r"data\.min_count=2 .*data\.max_size below 4"):
        write_ids(tmp_path, blocks, source="here")
    for limit in ({"min_count": 2}, {"max_size": 3}):
        vocabulary = write_ids(tmp_path, blocks, source="here", **limit)
        assert vocabulary.decode(np.load(tmp_path / "valid.npy")) == ["<unk>", "<eos>"]


def test_limits_rewrite_the_training_ids(tmp_path):
    text = [b"rare a b\n", b"a <unk> b other\n"]
    blocks = {"train": text, "valid": text, "test": text}
    vocabulary = write_ids(tmp_path, blocks, source="here", min_count=2)
    expected = ["<unk>", "a", "b", "<eos>", "a", "<unk>", "b", "<unk>", "<eos>"]
    assert vocabulary.words == ("<unk>", "a", "b", "<eos>")
    for split in blocks:
        assert vocabulary.decode(np.load(tmp_path / f"{split}.npy")) == expected


def parts_of(data: bytes, part_bytes: int) -> list[bytes]:
    return list(read_parts(io.BytesIO(data), "the text", part_bytes))


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_parts_end_between_words_at_every_size(tmp_path, text):
    path = write(tmp_path / "odd.txt", text)
    expected = reference_tokens(path)
    for part_bytes in (*range(1, len(text.encode()) + 2), 2**20):
        found = []
        for part in parts_of(path.read_bytes(), part_bytes):
            types, places = tokenize(part)
            words = [types[place] for place in places]
            found += words if part.endswith(b"\n") else words[:-1]
        assert found == expected


def test_an_empty_text_has_no_parts():
    assert parts_of(b"", 5) == parts_of(b"\xef\xbb\xbf", 5) == []


@pytest.mark.parametrize("part_bytes", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", r"byte 0xff at byte offset 0, in line 1 "),
        (b"a b\nc d\nab\xe9 c\n", r"byte 0xe9 at byte offset 10, in line 3 "),
        ("é é\né".encode()[:-1], r"byte 0xc3 at byte offset 6, in line 2 "),
        (b"a \n" * 500 + b"b \x80", r"byte 0x80 at byte offset 1,502, in line 501 "),
    ],
)
def test_where_a_text_is_not_utf8(data, message, part_bytes):
    with pytest.raises(UserError, match=rf"^the text is not UTF-8: {message}.*Convert it"):
        parts_of(data, part_bytes)


def test_a_text_of_one_line_needs_little_memory():
    file = io.BytesIO(b"word " * 10**6)
    tracemalloc.start()
    num_bytes = sum(len(part) for part in read_parts(file, "the text"))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_bytes == 5 * 10**6 + 1
    assert peak_bytes < 10**6


def test_a_text_that_cannot_be_read():
    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    with pytest.raises(UserError, match=r"^the text cannot be read: Input/output error\.$"):
        list(read_parts(Broken(), "the text"))
