"""A folder of things that are slow to build: each is built once, and is either whole or absent."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from lmbench.errors import UserError
from lmbench.files import replacing_folder

Entry = TypeVar("Entry")


def load_or_build(
    key: str,
    *,
    load: Callable[[Path], Entry | None],
    build: Callable[[Path], None],
    cache_dir: str | Path | None = None,
) -> Entry:
    """Loads an entry of the cache; builds it if it is missing or damaged.

    Processes that ask for the same entry at once wait for the one that builds it.

    Args:
        key: Name of the entry's folder: a hash of everything that decides its content.
        load: Opens that folder; None if it is missing or damaged.
        build: Fills an empty folder. It must turn its own reading errors into ``UserError``: an
            ``OSError`` that it raises is reported as trouble with the cache.
        cache_dir: Folder of the entries. None for ``$XDG_CACHE_HOME/lmbench``, or
            ``~/.cache/lmbench`` if that variable is not set.

    Raises:
        UserError: The cache cannot be written. Nothing half-written stays behind.
    """
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lmbench"
    root = Path(cache_dir).expanduser()
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
                with replacing_folder(folder) as new:
                    build(new)
                entry = load(folder)
            if entry is None:
                raise OSError("what was just written there cannot be read back")
    except OSError as error:
        raise UserError(
            f"The corpus cache in {root} cannot be written: {error.strerror or error}. Free "
            "some space there, or set data.cache_dir=… to a folder that can be written."
        ) from error
    return entry
