"""Text read in blocks; which files a text consists of is tested in test_corpus.py."""

import io
import subprocess

import pytest

from lmbench.data.text_files import read_blocks
from lmbench.errors import UserError


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"\xff", "byte 0xff at byte offset 0, in line 1 "),
        (b"abc\nab\xff", "byte 0xff at byte offset 6, in line 2 "),
        (b"\xef\xbb\xbfabc\n\x80", "byte 0x80 at byte offset 7, in line 2 "),
        (b"a \n" * 500 + b"b \x80 c\n", "byte 0x80 at byte offset 1,502, in line 501 "),
        (b"cut \xe2\x82", "byte 0xe2 at byte offset 4, in line 1 "),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 4, 1000])
def test_the_error_says_where_a_text_is_not_utf8(tmp_path, content, place, block_bytes):
    path = tmp_path / "latin1.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"latin1\.txt is not UTF-8: {place}"):
        list(read_blocks(path, block_bytes=block_bytes))
    with pytest.raises(UserError, match=rf"^stdin is not UTF-8: {place}"):
        list(read_blocks(io.BytesIO(content), "stdin", block_bytes))


def test_an_open_file_is_read_like_its_path(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffa b\n\nc".encode())
    with path.open("rb") as file:
        assert list(read_blocks(file, "it", 2)) == list(read_blocks(path, block_bytes=2))
        assert not file.closed


def test_unreadable_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.txt cannot be read: No such file"):
        list(read_blocks(tmp_path / "gone.txt"))


@pytest.mark.parametrize("encoding", ["utf-16", "windows-1252"])
def test_the_advice_for_another_encoding_works(tmp_path, encoding: str):
    path, text = tmp_path / "text.txt", "“So,” he said. Café.\n"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=r"text\.txt is not UTF-8: .* in line 1 ") as error:
        list(read_blocks(path))
    command = str(error.value).partition("converts it: ")[2].removesuffix(" OLD > NEW.")
    done = subprocess.run([*command.split(), path], capture_output=True, check=True)
    assert done.stdout.decode() == text
