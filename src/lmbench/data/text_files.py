"""Files of text: which ones there are, and what they hold."""

import re
from collections.abc import Iterator
from contextlib import nullcontext
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO

from lmbench.errors import UserError

SPLITS = ("train", "valid", "test")
BLOCK_BYTES = 16 * 2**20

FILE_NAMES = ("{}.txt", "{}.tokens", "wiki.{}.tokens", "ptb.{}.txt")
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
        raise UserError(
            f"{path} cannot be read: {error.strerror}. Set data.path=… to a text file, or to a "
            "folder of them."
        ) from error
    shown = ", ".join([*names[:10], *(["…"] if len(names) > 10 else [])]) or "no file"
    wanted = {split: [name.format(split) for name in FILE_NAMES] for split in SPLITS}
    found = {split: [name for name in wanted[split] if name in names] for split in SPLITS}
    if not any(found.values()):
        text = [one for one in path.rglob("*") if one.suffix.lower() == ".txt" and one.is_file()]
        text = [one for one in text if not re.search(r"(^|/)\.", one.relative_to(path).as_posix())]
        if not text:
            raise UserError(
                f"{path} has no text: neither train.txt, valid.txt and test.txt nor other .txt "
                f"files. It contains {shown}. Save text as .txt in UTF-8, or set data.path=… to "
                "another file or folder."
            )
        text.sort(key=lambda one: one.relative_to(path).parts)
        places = [one.relative_to(path).as_posix() for one in text]
        words = [re.compile(rf"(?<![a-z])({word})(?![a-z])", re.I) for word in _SPLIT_WORDS]
        named = [next(filter(word.search, places), None) for word in words]
        parts = dict.fromkeys(filter(None, named))
        if len(parts) > 1:  # a single one may be a title, such as A Test of Wills.txt
            raise UserError(
                f"{path}: {' and '.join(parts)} look like parts of a text that is already split. "
                f"Put the splits into one folder as {', '.join(f'{one}.txt' for one in SPLITS)}, "
                "or rename the files if lmbench should split the text itself."
            )
        return text
    for split in SPLITS:
        if len(found[split]) != 1:
            raise UserError(
                f"{path} must have one file for the {split} split: {' or '.join(wanted[split])}. "
                f"It has {', '.join(found[split]) or shown}. Fix that, or set data.path=… to "
                "another folder. A folder with none of these names is split automatically."
            )
    return {split: path / found[split][0] for split in SPLITS}


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
        line += error.object.count(b"\n", 0, error.start)
        is_utf16 = offset == 0 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        kind, encoding = ("UTF-16", "utf-16") if is_utf16 else ("from Windows", "windows-1252")
        raise UserError(
            f"{name} is not UTF-8: byte {error.object[error.start]:#04x} at byte offset "
            f"{offset + error.start:,}, in line {line:,} ({error.reason}). If it is {kind}, "
            f"this converts it: iconv -f {encoding} -t utf-8 OLD > NEW."
        ) from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}.") from error
