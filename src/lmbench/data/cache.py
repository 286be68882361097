"""A folder of things that are slow to build: each is built once, and is whole or not there."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from lmbench.errors import UserError
from lmbench.files import flush_to_disk

Entry = TypeVar("Entry")
SETTLED_NANOSECONDS = 2 * 10**9


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/lmbench``, or ``~/.cache/lmbench`` where the variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmbench"


def content_hash(
    path: Path,
    read: Callable[[], Iterable[bytes]],
    cache_dir: str | Path | None = None,
    *,
    verify: bool = False,
) -> str:
    """SHA-256 of a file, read only if its size or time of change is not that of last time.

    Args:
        path: The file.
        read: Gives its bytes.
        cache_dir: Folder that remembers hashes, ``default_cache_dir()`` if None.
        verify: Read the file in any case.
    """
    root = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    where = os.fsencode(path.absolute())
    memory = root / "files" / f"{hashlib.sha256(where).hexdigest()}.json"
    identity = _identity(path)
    if identity is not None and not verify:
        # What is not there, not whole or of another time has not this seal: the file itself tells.
        with contextlib.suppress(Exception):
            remembered = json.loads(memory.read_bytes())
            if remembered["seal"] == _seal(identity, remembered["sha256"]):
                return remembered["sha256"]
    digest = hashlib.sha256()
    for block in read():
        digest.update(block)
    sha256 = digest.hexdigest()
    # A file that has just changed could change again within the resolution of its clock.
    if (
        identity is not None
        and identity == _identity(path)
        and time.time_ns() - identity[2] > SETTLED_NANOSECONDS
    ):
        with contextlib.suppress(OSError):  # it costs time, not correctness
            memory.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"sha256": sha256, "seal": _seal(identity, sha256)})
            memory.write_text(content, encoding="utf-8")
    return sha256


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:  # reading it will say why
        return None
    return status.st_size, status.st_ino, status.st_mtime_ns


def _seal(identity: tuple[int, int, int], sha256: str) -> str:
    return hashlib.sha256(repr((identity, sha256)).encode()).hexdigest()


def load_or_build(
    key: str,
    *,
    load: Callable[[Path], Entry | None],
    build: Callable[[Path], None],
    cache_dir: str | Path | None = None,
) -> Entry:
    """Loads an entry of the cache; builds it where it is missing or damaged.

    Processes that ask for the same entry at once wait for the one that builds it.

    Args:
        key: Name of the entry's folder: a hash of everything that decides its content.
        load: Opens that folder; None if there is none or it is damaged.
        build: Fills an empty folder. It turns its own reading errors into ``UserError``: what it
            lets through as ``OSError`` is taken for trouble with the cache.
        cache_dir: Folder of the entries, ``default_cache_dir()`` if None.

    Raises:
        UserError: The cache cannot be written. Nothing half-written stays behind.
    """
    root = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    folder = root / key
    # Without the lock: a cache that is full or read-only still serves what it has.
    entry = load(folder)
    if entry is not None:
        return entry
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{key}.lock"):
            entry = load(folder)
            if entry is None:
                _build_and_publish(folder, build)
                entry = load(folder)
            if entry is None:
                raise OSError("what was just written there cannot be read back")
    except OSError as error:
        raise UserError(
            f"The corpus cache in {root} cannot be written: {error.strerror or error}. Make room "
            "there or set data.cache_dir=… to a folder that can be written."
        ) from error
    return entry


def _build_and_publish(folder: Path, build: Callable[[Path], None]) -> None:
    """Builds a folder; the lock is held, so that nobody else does."""
    for path in folder.parent.glob(f"{folder.name}.*"):
        if path.is_dir():  # of a process that was killed while it built
            shutil.rmtree(path, ignore_errors=True)
    # A folder that already bears the final name could be seen, or left behind, half-written.
    # What cannot be removed at its end, as on NFS while someone reads it, the next build removes.
    with tempfile.TemporaryDirectory(
        prefix=f"{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
    ) as workplace:
        new = Path(workplace) / "new"
        new.mkdir()
        build(new)
        for path in (*new.iterdir(), new):
            flush_to_disk(path)
        if folder.exists():
            # A directory cannot replace a non-empty one. Whoever has it mapped keeps it.
            folder.replace(Path(workplace) / "damaged")
        new.replace(folder)
        flush_to_disk(folder.parent)
