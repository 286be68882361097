"""Files written whole or not at all, and files read with care."""

import errno
import glob
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from lmbench.errors import UserError

_Fastest: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C's is ten times as fast

LEFTOVER_SECONDS = 3600
LARGEST_TEXT = 2**28
"""Bytes of the largest text that is read at once: a config, results, the rows of a metrics.csv."""


class _YAMLLoader(_Fastest):
    """Reads plain values, as OmegaConf writes them."""


_YAMLLoader.add_implicit_resolver(  # YAML 1.1 reads 1e-5, without a point, as a text
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@contextmanager
def reading(path: Path, hint: str = "") -> Iterator[None]:
    """The door for files that another may have made: names the file in whatever goes wrong inside.

    Args:
        path: What is read inside.
        hint: What to do, with a leading space.

    Raises:
        UserError: It is missing or no regular file, which could be read for ever; or it is damaged,
            at which a library can raise anything.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("it is not a file")
        yield
    except UserError:
        raise
    except Exception as error:
        raise unreadable(path, error, hint) from error


def unreadable(place: object, error: Exception, hint: str = "") -> UserError:
    """The error for users if reading a file has raised another; see :func:`reading`."""
    if isinstance(error, (OSError, UnicodeError)):
        reason = getattr(error, "strerror", None) or error
        return UserError(f"{place} cannot be read: {reason}.{hint}")
    reason = " ".join(str(error).split()) or type(error).__name__
    reason = f"it has no {reason}" if isinstance(error, KeyError) else reason
    return UserError(f"{place} is damaged: {reason}.{hint}")


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: See :func:`reading`; or it is not UTF-8, or very large.
    """
    with reading(path):
        if path.stat().st_size > LARGEST_TEXT:
            raise OSError(f"it has more than {LARGEST_TEXT:,} bytes")
        return path.read_text("utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: See :func:`read_text`; or it is not JSON, or not an object.
    """
    with reading(path, " Copy it again, or run again."):
        value = json.loads(read_text(path))
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
        return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, of plain values.

    Aliases are refused, as with them a small file can hold a huge value.

    Raises:
        UserError: See :func:`read_text`; or it is not such a file.
    """
    with reading(path):
        text = read_text(path)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _YAMLLoader)):
            raise ValueError("it has aliases (*), which lmbench does not read")
        value = yaml.load(text, _YAMLLoader)  # a SafeLoader
        if value is not None and not isinstance(value, dict):
            raise ValueError("it is not a mapping of keys to values")
        return value or {}


def file_stem(name: str) -> str:
    """The name as a part of a file's name: letters of any script, digits, _ and -."""
    return re.sub(r"[^\w-]+", "_", name).encode()[:200].decode(errors="ignore")


def is_folder(path: str | Path) -> bool:
    """Whether the path is a folder; False if it is too long or access is denied."""
    return os.path.isdir(path)  # noqa: PTH112 - Path's raises for these


def exists(path: str | Path) -> bool:
    """Whether the path exists; False if it is too long or access is denied."""
    return os.path.exists(path)  # noqa: PTH110 - Path's raises for these


def flush_to_disk(path: Path) -> None:
    """Flushes a file's content, or the new names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems do this only for files.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields another name to write under; at the end it takes the file's place, or is removed."""
    _remove_leftovers(path, f"{glob.escape(path.name)}.*.tmp")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # others may write it too
    temporary.unlink(missing_ok=True)  # left by a killed process with the same number
    try:
        yield temporary
        flush_to_disk(temporary)  # or a power failure could leave an empty file under the new name
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # that of a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields another folder to fill; at the end it takes the place of what is at the path, if any.

    If anything goes wrong, including Ctrl-C, only what was there before is left; parent folders
    that had to be made stay.
    """
    # A process killed between the two renames below has left nothing at the path.
    name = glob.escape(path.name)
    for old in path.parent.glob(f".{name}.*.old"):
        if not path.exists():
            old.rename(path)
    _remove_leftovers(path, f".{name}.*.new", f".{name}.*.old")
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    for folder in (new, old):  # left by a killed process with the same number
        shutil.rmtree(folder, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        for file in new.iterdir():
            flush_to_disk(file)
        if path.exists():
            path.rename(old)
        new.rename(path)
        flush_to_disk(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file under another name first; the old one stays until that is done."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def _remove_leftovers(path: Path, *patterns: str) -> None:
    """Removes what killed processes have left beside a path."""
    for pattern in patterns:
        for leftover in path.parent.glob(pattern):
            with suppress(OSError):  # removed by another process meanwhile
                if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
