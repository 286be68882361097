"""The directory of a sweep as a place: which of its folders belongs to which job."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from lmbench.errors import UserError
from lmbench.files import replace_text

RECORD = "job.json"
"""File in a job's folder that tells its overrides. (Hydra rewrites its own when a folder is used
again.)"""

# data.path stays: it may be all that tells two corpora of one's own apart.
_NOT_OF_THE_JOB = ("sweep_resume", "data.cache_dir")


def own_overrides(overrides: Iterable[str]) -> list[str]:
    """The overrides that make a job what it is, in any order: a job is known by them."""
    return sorted(
        item for item in overrides if item.lstrip("+").partition("=")[0] not in _NOT_OF_THE_JOB
    )


def job_folder(sweep_dir: Path, number: int, overrides: Iterable[str], *, resume: bool) -> str:
    """The name of the folder that a job works in.

    Args:
        sweep_dir: The directory of the sweep.
        number: The job's number, from 0.
        overrides: What the job was given.
        resume: Whether the sweep goes on in a directory that may hold the job already.

    Returns:
        The number; in a sweep that goes on the folder of the job with the same overrides, and for a
        job that is new there, but whose number is taken by another job or by a run of its own,
        number and hash of its overrides.
    """
    if not resume:
        return str(number)
    wanted = own_overrides(overrides)
    of_number = sweep_dir / str(number)
    taken_by = _job_in(of_number)
    if taken_by == wanted:  # as when the same command is given again: no other folder is read
        return of_number.name
    for record in sorted(sweep_dir.glob(f"*/{RECORD}")):
        if _job_in(record.parent) == wanted:
            return record.parent.name
    if taken_by is None and not _holds_other_run(of_number):
        return of_number.name
    return f"{number}_{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:8]}"


def record_job(run_dir: Path, overrides: Iterable[str]) -> None:
    """Writes which job works in a folder, once.

    Raises:
        UserError: The folder belongs to another job.
    """
    wanted, present = own_overrides(overrides), recorded_job(run_dir)
    if present is None:
        replace_text(run_dir / RECORD, json.dumps({"overrides": wanted}) + "\n")
    elif present != wanted:
        other = " ".join(item for item in present if item not in wanted) or "fewer overrides"
        raise UserError(
            f"{run_dir} belongs to another job, with {other}. Name another directory with "
            "hydra.sweep.dir=DIR, or go on with the sweep that is there: sweep_resume=true."
        )


def recorded_job(run_dir: Path) -> list[str] | None:
    """The overrides of the job that works in a folder; None if none has begun there.

    Raises:
        UserError: The record is damaged.
    """
    path = run_dir / RECORD
    if not path.is_file():
        return None
    try:
        overrides = json.loads(path.read_text("utf-8"))["overrides"]
        if not isinstance(overrides, list):
            raise TypeError("overrides are no list")
        return own_overrides(map(str, overrides))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Take the folder away.") from error


def _holds_other_run(folder: Path) -> bool:
    """Whether a run is there that no sweep began: a job's record is written before its config."""
    names = () if (folder / RECORD).exists() else ("config.yaml", "results.json")
    return any((folder / name).exists() for name in names)


def _job_in(run_dir: Path) -> list[str] | None:
    """The same as :func:`recorded_job`, but None for a damaged record.

    One must not end the sweep; the job that works in its folder tells of it.
    """
    try:
        return recorded_job(run_dir)
    except UserError:
        return None
