"""Which run a command line of lmbench-train is about: a new one, one that goes on, or one done."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from lmbench.config import take_over_from_run
from lmbench.errors import UserError
from lmbench.report.folders import field
from lmbench.report.scores import read_results
from lmbench.run.config import resumed_config
from lmbench.run.directory import is_run
from lmbench.run.overrides import places_of
from lmbench.run.sweep import record_job


@dataclass(frozen=True)
class ChosenRun:
    """A run that is to be trained, or has been.

    Attributes:
        config: The config that it is trained with.
        resumed_with: The new overrides of a run that goes on; None for a new run.
        perplexity: The best on valid, of a run that is done already; None of one that is not.
    """

    config: DictConfig
    resumed_with: list[str] | None = None
    perplexity: float | None = None


def chosen_run(config: DictConfig, run_dir: Path, overrides: Sequence[str]) -> ChosenRun:
    """The one run of a command.

    Args:
        config: The composed config.
        run_dir: The folder that Hydra writes into.
        overrides: The command line's.

    Raises:
        UserError: The command is about no run, or about two.
    """
    if _resumes_sweep(config):
        raise UserError("sweep_resume goes on with a sweep (-m); one run: resume=RUN_DIR.")
    if OmegaConf.is_missing(config, "resume"):
        return ChosenRun(take_over_from_run(config, overrides))
    if config.resume in (None, ""):
        raise UserError("Set resume=RUN_DIR, the directory of the run to continue.")
    resumed = Path(str(config.resume))  # the job of a sweep has a number for a name
    of_run, new = resumed_config(resumed, overrides)
    if not run_dir.samefile(resumed):
        raise UserError("resume continues a run in its own directory: leave out hydra.run.dir.")
    return ChosenRun(of_run, resumed_with=new)


def chosen_job(
    config: DictConfig, run_dir: Path, overrides: Sequence[str], hydra_overrides: Sequence[str]
) -> ChosenRun:
    """One job of a sweep: new, or one that a sweep which goes on has begun or done before.

    Args:
        config: The composed config.
        run_dir: The job's folder in the directory of the sweep.
        overrides: The job's.
        hydra_overrides: The job's overrides of Hydra's own config.

    Raises:
        UserError: The folder belongs to another job; or the command names no sweep to go on with,
            or folders of its own for it.
    """
    resumes = _resumes_sweep(config)
    of_hydra = {item.lstrip("+").partition("=")[0] for item in hydra_overrides}
    if not OmegaConf.is_missing(config, "resume"):
        raise UserError("resume continues one run: leave out -m.")
    if resumes and "hydra.sweep.dir" not in of_hydra:
        raise UserError("sweep_resume=true needs hydra.sweep.dir=DIR, the sweep to go on with.")
    if resumes and "hydra.sweep.subdir" in of_hydra:
        raise UserError(
            "sweep_resume=true finds each job's folder by its overrides. Leave out "
            "hydra.sweep.subdir, or go on with single jobs: lmbench-train resume=RUN_DIR."
        )
    devices = config.trainer.get("devices")
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
    if not resumes and is_taken:
        raise UserError(
            f"{run_dir} holds a run already. Name another directory with hydra.sweep.dir=DIR, or "
            "go on with the sweep that is there: sweep_resume=true."
        )
    if is_first:
        record_job(run_dir, overrides)
    results = run_dir / "results.json"
    if resumes and results.exists():
        perplexity = field(read_results(run_dir), "val.ppl", float, results)
        return ChosenRun(config, perplexity=perplexity)
    if resumes and is_run(run_dir):
        of_run, new = resumed_config(run_dir, places_of(overrides))
        return ChosenRun(of_run, resumed_with=new)
    return ChosenRun(take_over_from_run(config, overrides))


def _slurm_starts_processes() -> bool:
    """By Lightning's own rule: a shell within an allocation starts none."""
    is_shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and not is_shell


def _resumes_sweep(config: DictConfig) -> bool:
    if not isinstance(config.sweep_resume, bool):
        raise UserError(f"sweep_resume must be true or false, not {config.sweep_resume}.")
    return config.sweep_resume
