"""Files that are whole or not there, whatever happens while they are written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """Brings a file's content, or the new names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives another name to write under; at the end it takes the file's place, or is taken away."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # others may write it too
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text under another name first; the file of before stays until it is there."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file under another name first; the file of before stays until it is there."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
