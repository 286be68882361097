"""Files that are whole or not there, whatever happens while they are written."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """Brings a file's content, or the new names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems do this for files alone.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives another name to write under; at the end it takes the file's place, or is taken away."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # others may write it too
    try:
        yield temporary
        flush_to_disk(temporary)  # or a loss of power may leave the new name with nothing in it
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Gives another folder to fill; at the end it takes the place of what is at the path, if any.

    If anything goes wrong, be it Ctrl-C, what was there is there again, and nothing else.
    """
    temporary, before = (path.with_name(f".{path.name}.{os.getpid()}.{x}") for x in "ab")
    new_parents = [folder for folder in path.parents if not folder.exists()]
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            flush_to_disk(file)
        if path.exists():
            path.rename(before)
        temporary.rename(path)
        flush_to_disk(path.parent)
    finally:
        if before.exists() and not path.exists():
            before.rename(path)
        for folder in (temporary, before):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in new_parents:
            with suppress(OSError):  # one that holds the new folder stays
                folder.rmdir()


def replace_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text under another name first; the file of before stays until it is there."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Writes a file under another name first; the file of before stays until it is there."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
