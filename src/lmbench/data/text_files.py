"""Files of text: which ones there are, and what they hold."""

import re
from collections.abc import Iterator
from contextlib import nullcontext
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

from lmbench.errors import UserError
from lmbench.files import unreadable

SPLITS = ("train", "valid", "test")
BLOCK_BYTES = 16 * 2**20

FILE_NAMES = ("{}.txt", "{}.tokens", "wiki.{}.tokens", "ptb.{}.txt")
_NOT_TEXT = {
    "a zip archive": b"PK\x03\x04",
    "a gzip archive": b"\x1f\x8b",
    "an xz archive": b"\xfd7zXZ",
    "a PDF": b"%PDF",
}
_SPLIT_WORDS = ("train(ing)?", "valid(ation)?|dev", "test")


def find_files(path: Path) -> dict[str, Path] | list[Path]:
    """The file of each split, or the files of a text that is yet to be split.

    Args:
        path: A file or a folder.

    Raises:
        UserError: It cannot be read, or has no text; a split has no file or several; or files of
            other names look like splits.
    """
    try:
        if path.is_file():
            return [path]
        names = sorted(one.name for one in path.iterdir() if one.name[0] != ".")
    except OSError as error:
        hint = " Set data.path=… to a text file, or to a folder of them."
        raise unreadable(path, error, hint) from error
    wanted = {split: [name.format(split) for name in FILE_NAMES] for split in SPLITS}
    present = {split: [name for name in wanted[split] if name in names] for split in SPLITS}
    if not any(present.values()) and (files := _text_files(path)):
        return files
    for split in SPLITS:
        if len(present[split]) != 1:
            there = ", ".join(present[split] or names[:10]) or "no file"
            raise UserError(
                f"{path} must have one file for the {split} split: {' or '.join(wanted[split])}. "
                f"It has {there}. Fix that, or set data.path=… to another folder. One with .txt "
                "files of other names is split automatically."
            )
    return {split: path / present[split][0] for split in SPLITS}


def _text_files(folder: Path) -> list[Path]:
    """The ``.txt`` files of a folder and its subfolders, hidden ones excepted.

    Raises:
        UserError: They look like splits.
    """
    places = sorted(one.relative_to(folder) for one in folder.rglob("*") if one.is_file())
    places = [one for one in places if one.suffix.lower() == ".txt" and "/." not in f"/{one}"]
    words = [re.compile(rf"(?<![a-z])({word})(?![a-z])", re.I) for word in _SPLIT_WORDS]
    named = [next(filter(word.search, map(str, places)), None) for word in words]
    parts = dict.fromkeys(filter(None, named))
    if len(parts) > 1:  # a single one may be a title, such as A Test of Wills.txt
        raise UserError(
            f"{folder}: {' and '.join(parts)} look like parts of a text that is already split. "
            f"Put the splits into one folder as {', '.join(f'{one}.txt' for one in SPLITS)}, "
            "or rename the files if lmbench should split the text itself."
        )
    return [folder / place for place in places]


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
        for kind, start in _NOT_TEXT.items():
            if offset == 0 and error.object.startswith(start):
                raise UserError(
                    f"{name} is not text, but {kind}: extract the text first."
                ) from error
        line += error.object.count(b"\n", 0, error.start)
        is_utf16 = offset == 0 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        kind, encoding = ("UTF-16", "utf-16") if is_utf16 else ("from Windows", "windows-1252")
        raise UserError(
            f"{name} is not UTF-8: byte {error.object[error.start]:#04x} at byte offset "
            f"{offset + error.start:,}, in line {line:,} ({error.reason}). If it is {kind}, "
            f"this converts it: iconv -f {encoding} -t utf-8 OLD > NEW."
        ) from error
    except OSError as error:
        raise unreadable(name, error) from error
