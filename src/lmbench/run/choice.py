"""Which run a command line of lmbench-train is about: a new, a resumed or a finished one."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from lmbench.errors import UserError
from lmbench.files import read_json
from lmbench.run.changes import apply_init_from, resumed_config
from lmbench.run.config import MACHINE_KEYS, plain_config
from lmbench.run.directory import is_run, key_of

LONGEST_NAME = 100
"""Characters in the name of a job's folder, of the 255 that file systems allow."""


@dataclass(frozen=True)
class ChosenRun:
    """A run that is to be trained, or has been.

    Attributes:
        config: The config that it is trained with, as plain values.
        overrides: The command line's, of a new run.
        resumes: Whether it continues what its directory holds.
        changed: The config to write when the resume begins; None if it stays the same.
        perplexity: The best on valid, of a run that is done already; None otherwise.
    """

    config: dict[str, Any]
    overrides: Sequence[str] = ()
    resumes: bool = False
    changed: dict[str, Any] | None = None
    perplexity: float | None = None


def choose_run(config: DictConfig, run_dir: Path, overrides: Sequence[str]) -> ChosenRun:
    """The one run of a command.

    Args:
        config: The composed config.
        run_dir: The folder that Hydra writes into.
        overrides: The command line's.

    Raises:
        UserError: The command names two runs, or no run where it should.
    """
    if config.sweep_resume:
        raise UserError("sweep_resume continues a sweep (-m); for one run: resume=RUN_DIR.")
    if config.resume is None:
        return ChosenRun(plain_config(apply_init_from(config, overrides)), overrides)
    resumed = Path(str(config.resume))  # a folder's name may be a number
    new_config, changed = resumed_config(resumed, overrides)
    if not run_dir.samefile(resumed):
        raise UserError("resume continues a run in its own directory: leave out hydra.run.dir.")
    return ChosenRun(new_config, resumes=True, changed=changed)


def choose_job(
    config: DictConfig, run_dir: Path, overrides: Sequence[str], hydra_overrides: Sequence[str]
) -> ChosenRun:
    """One job of a sweep: new, or one that an earlier part of the sweep has begun or finished.

    Args:
        config: The composed config.
        run_dir: The job's folder in the directory of the sweep.
        overrides: The job's.
        hydra_overrides: The job's overrides of Hydra's own config.

    Raises:
        UserError: The folder holds a run, and the sweep is not to be continued; or the command
            names no sweep to continue, or its own folders for the jobs.
    """
    if config.resume is not None:
        raise UserError("resume continues one run: leave out -m.")
    hydra_keys = set(map(key_of, hydra_overrides))
    if config.sweep_resume and "hydra.sweep.dir" not in hydra_keys:
        raise UserError("sweep_resume=true needs hydra.sweep.dir=DIR, the sweep to continue.")
    if config.sweep_resume and "hydra.sweep.subdir" in hydra_keys:
        raise UserError(
            "sweep_resume=true finds each job's folder by its overrides. Leave out "
            "hydra.sweep.subdir, or continue single jobs: lmbench-train resume=RUN_DIR."
        )
    devices = config.trainer.devices
    is_one = len(devices) == 1 if isinstance(devices, ListConfig) else devices in (1, "1")
    if not is_one and not _slurm_starts_processes():
        # Each further process would run the command, and so the sweep, once more.
        raise UserError(
            f"trainer.devices={devices}: jobs of a sweep have one device each, unless Slurm starts "
            "their processes. Leave out -m to train one run on several."
        )
    # A later process of the job may find what the first has just written, but no checkpoint yet.
    is_first = os.environ.get("SLURM_PROCID", "0") == "0"
    is_taken = is_run(run_dir) and (is_first or (run_dir / "checkpoints").exists())
    # If the command has not named the folder, this same sweep has tried the same job before.
    if is_taken and not config.sweep_resume and "hydra.sweep.dir" in hydra_keys:
        raise UserError(
            f"{run_dir} holds a run already. Name another directory with hydra.sweep.dir=DIR, or "
            "continue the sweep that is there: sweep_resume=true."
        )
    if is_taken and (results := run_dir / "results.json").exists():
        val = read_json(results).get("val")
        if isinstance(val, dict) and isinstance(val.get("ppl"), float):  # else it is tested again
            return ChosenRun({}, perplexity=val["ppl"])
    if is_taken:
        places = [item for item in overrides if key_of(item) in MACHINE_KEYS]
        return ChosenRun(resumed_config(run_dir, places)[0], resumes=True)
    return ChosenRun(plain_config(apply_init_from(config, overrides)), overrides)


def job_folder(overrides: Iterable[str]) -> str:
    """The name of a job's folder in a sweep: its overrides, in any order.

    A job is known by this name, so that a sweep can be continued. It has only characters that
    Hydra takes in a value without quotes. If that, or the length, loses something, it ends in a
    hash.

    >>> job_folder(["seed=1", "model=lstm", "sweep_resume=true"])
    'model-lstm+seed-1'
    """
    others = ("sweep_resume", "data.cache_dir")
    own = sorted(item.lstrip("+") for item in overrides if key_of(item) not in others)
    if len("+".join(own)) > LONGEST_NAME:  # jobs differ mostly in groups, seeds and short values
        own.sort(key=lambda item: ("." in key_of(item), len(item)))
    name = "+".join(item.replace("=", "-", 1) for item in own)
    readable = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip("-.")[:LONGEST_NAME]
    if name and readable == name and not any("+" in item for item in own):
        return name
    return f"{readable}-{hashlib.sha256(repr(own).encode()).hexdigest()[:8]}".strip("-")


def _slurm_starts_processes() -> bool:
    """By Lightning's own rule: a shell within an allocation starts none."""
    is_shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and not is_shell
