"""Where run directories lie, and their files read as if they came from a stranger."""

import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lmbench.errors import UserError

Kind = TypeVar("Kind", str, int, float, dict)

_NAMES = {str: "a text", int: "a whole number", float: "a finite number", dict: "an object"}


@dataclass(frozen=True)
class LeftOut:
    """What was found and does not count.

    Attributes:
        path: The run's folder, or the file in it.
        reason: What was wrong, and what to do.
    """

    path: Path
    reason: str


def find_run_dirs(paths: Iterable[Path]) -> tuple[list[Path], list[LeftOut]]:
    """The run directories at or under some folders, each once, jobs of a sweep in their order.

    A run directory holds ``config.yaml`` or ``results.json``, or at least Hydra's own ``.hydra``:
    then the run failed before it began.

    Raises:
        UserError: A path is no folder, or cannot be looked at.
    """
    found: dict[Path, Path] = {}
    left_out: list[LeftOut] = []
    links: list[Path] = []
    named: set[Path] = set()
    for path in paths:
        try:
            is_folder = path.is_dir()
        except OSError as error:  # in a folder that may not be read, or of a name that is too long
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        if not is_folder:
            raise UserError(f"{path} is no folder. Name run directories, or folders of them.")
        named.add(path.resolve())
        run_dirs = list(_walk(path, left_out, links))
        if not run_dirs:
            left_out.append(LeftOut(path, "Holds no run."))
        for run_dir in sorted(run_dirs, key=_by_number):
            found.setdefault(run_dir.resolve(), run_dir)
    left_out += [
        LeftOut(link, "Is a link, and is not followed: name it itself.")
        for link in links
        # One to what was walked, such as "latest", loses nothing.
        if not named & {link.resolve(), *link.resolve().parents}
    ]
    return list(found.values()), left_out


def field(values: Any, key: str, kind: type[Kind], path: Path) -> Kind:
    """A value by its dotted key.

    Args:
        values: Nested objects, as JSON gives them.
        key: The key, such as ``val.ppl``.
        kind: ``str``, ``int``, ``float`` (takes an int too) or ``dict``.
        path: The file, for the message.

    Raises:
        UserError: The value is missing or of another kind.
    """
    value = optional_field(values, key, kind, path)
    if value is None:
        raise UserError(f"{path} is damaged: {key} is missing. Copy it anew, or run again.")
    return value


def optional_field(values: Any, key: str, kind: type[Kind], path: Path) -> Kind | None:
    """The same as :func:`field`, but None where the value is missing or null."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    if values is None:
        return None
    if kind in (int, float) and isinstance(values, (int, float)) and not isinstance(values, bool):
        with suppress(OverflowError):  # an int too large for a float
            if math.isfinite(values) and isinstance(values, (kind, int)):
                return kind(values)
    elif kind in (str, dict) and isinstance(values, kind):
        return values
    raise UserError(f"{path} is damaged: {key} is not {_NAMES[kind]}. Copy it anew, or run again.")


def _walk(folder: Path, left_out: list[LeftOut], links: list[Path]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        left_out.append(LeftOut(Path(error.filename), f"Cannot be read: {error.strerror}."))

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        if "config.yaml" in files or "results.json" in files or ".hydra" in folders:
            yield Path(parent)
            # The rest may hold runs too, as where a sweep was put into the folder of a run.
            folders[:] = [name for name in folders if name not in ("checkpoints", "tensorboard")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        with suppress(PermissionError):  # the walk comes there next, and tells of it
            links += [link for name in folders if (link := Path(parent, name)).is_symlink()]


def _by_number(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
