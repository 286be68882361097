"""What ``conf/train.yaml`` asks lmbench: which folder Hydra writes into."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lmbench.run.directory import is_run
from lmbench.run.sweep import job_folder


def register_resolvers() -> None:
    """Lets configs of this process call ``lmbench.run_dir`` and ``lmbench.job_folder``."""
    OmegaConf.register_new_resolver("lmbench.run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("lmbench.job_folder", _job_folder, replace=True)


def as_typed(overrides: Any) -> list[str]:
    """Hydra's overrides, a ``ListConfig``, without resolving what they interpolate.

    That has a meaning only in the config of the run, which may be another than the composed one.
    """
    return list(map(str, OmegaConf.to_container(overrides, resolve=False)))  # pyright: ignore


def _run_dir(resume: Any, new: str) -> str:
    """The run that is resumed, if it is one; else a new folder."""
    return new if resume in (None, "") or not is_run(str(resume)) else str(resume)


def _job_folder(sweep_dir: str, number: int, overrides: Any, resume: Any) -> str:
    """The folder that a job of a resumed sweep had before."""
    return job_folder(Path(sweep_dir), number, as_typed(overrides), resume=resume is True)
