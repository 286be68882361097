"""The directory of a run as a place: whether it is one, who works in it, what was written there."""

import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lmbench.errors import UserError


def is_run(path: str | Path) -> bool:
    """Whether it is the directory of a run into which one can write without landing elsewhere."""
    try:
        return Path(path, "config.yaml").is_file() and _first_link(Path(path)) is None
    except OSError:  # in a folder that may not be read, or of a name that is too long
        return False


def require_no_links(run_dir: Path) -> None:
    """Refuses a run's directory that holds a link: what is written would land elsewhere.

    Raises:
        UserError: Naming the link.
    """
    link = _first_link(run_dir)
    if link is not None:
        raise UserError(f"{link} is a link: what the run writes would land elsewhere.")


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Keeps other processes from working in a run's directory; the system ends it with the process.

    Raises:
        UserError: Another process is at work there.
    """
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(f"Another process is at work in {run_dir}. Stop it first.") from error


def time_of_change(path: Path) -> int | None:
    """When a file came to be as it is, in ns since 1970; None if there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def clear_run(run_dir: Path) -> None:
    """Takes away what a run wrote that has no checkpoint to go on from."""
    for folder in ("checkpoints", "tensorboard"):
        shutil.rmtree(run_dir / folder, ignore_errors=True)
    for name in ("metrics.csv", "timing.csv", "results.json"):
        (run_dir / name).unlink(missing_ok=True)


def as_override(key: str, path: Path) -> str:
    """``KEY=PATH`` as one types it: quoted for Hydra and for the shell where it must be."""
    text = str(path)
    if not re.fullmatch(r"[\w./-]+", text, re.ASCII):
        text = "'" + text.replace("'", r"\'") + "'"
    return shlex.quote(f"{key}={text}")


def _first_link(run_dir: Path) -> Path | None:
    return next((path for path in run_dir.rglob("*") if path.is_symlink()), None)
