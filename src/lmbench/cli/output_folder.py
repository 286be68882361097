"""The folder that Hydra writes into: which one it is, and a check before that."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmbench.errors import UserError
from lmbench.run.choice import job_folder
from lmbench.run.directory import is_run, require_inside, require_no_run
from lmbench.run.targets import conf_dirs
from lmbench.terminal.printing import printable

PROBE_BYTES = 2**16

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""Environment variables that are above 0 in all processes of a run but the first."""


def register() -> None:
    """Tells Hydra of ``lmbench.run_dir``, ``lmbench.job_folder``, and installed packages' parts."""
    Plugins.instance().register(InstalledParts)

    def run_dir(resume: Any, new: str) -> str:
        """The run that is resumed, if ``resume`` names one; else a new folder."""
        return new if resume in (None, "") or not is_run(str(resume)) else str(resume)

    OmegaConf.register_new_resolver("lmbench.run_dir", run_dir, replace=True)
    OmegaConf.register_new_resolver(
        "lmbench.job_folder", lambda overrides: job_folder(unresolved(overrides)), replace=True
    )


def unresolved(overrides: Any) -> list[str]:
    """Hydra's overrides, a ``ListConfig``, with the interpolations that they were typed with.

    These have a meaning only in the run's config, which may not be the composed one.
    """
    return list(map(str, OmegaConf.to_container(overrides, resolve=False)))  # pyright: ignore


class InstalledParts(SearchPathPlugin):
    """Lets Hydra find the options of installed packages."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends their folders to where Hydra looks."""
        for folder in conf_dirs()[1:]:
            search_path.append("lmbench.conf", f"file://{folder}")


class OutputFolder(Callback):
    """Checks the folder of a run or a sweep before Hydra writes into it.

    Ends the command if it cannot be written, if a link in it leads somewhere else, or if a run is
    to begin where another one has.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Checks the folder of a single run, before Hydra overwrites its notes on another run."""
        _require_usable(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Checks the folder of the sweep."""
        _require_usable(config, "hydra.sweep.dir")


def _require_usable(config: DictConfig, key: str) -> None:
    try:
        folder = Path(OmegaConf.select(config, key))
    except OmegaConfBaseException:  # ${hydra:…} has no value yet
        return
    is_first = all(os.environ.get(name, "0") == "0" for name in RANKS)
    is_resumed = Path(str(OmegaConf.select(config, "resume"))) == folder
    probe = folder / f".lmbench.{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_inside(folder)
        if key == "hydra.run.dir" and is_first and not is_resumed:
            require_no_run(folder)
        try:
            probe.write_bytes(bytes(PROBE_BYTES))  # a full disk shows only now
        finally:
            probe.unlink(missing_ok=True)
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{folder} cannot be written to: {error.strerror}."
    else:
        return
    # Not an exception: Hydra turns what its callbacks raise into a warning, and continues.
    sys.exit(printable(problem if is_resumed else f"{problem} For another folder: {key}=DIR."))
