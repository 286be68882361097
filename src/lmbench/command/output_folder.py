"""The folder of a run or a sweep, looked at before Hydra makes it."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class OutputFolder(Callback):
    """Ends the command where its folder cannot be written, for which Hydra gives a traceback."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Looks at the folder of the one run."""
        _require_writable(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Looks at the folder of the sweep."""
        _require_writable(config, "hydra.sweep.dir")


def _require_writable(config: DictConfig, key: str) -> None:
    try:
        folder = OmegaConf.select(config, key)
    except OmegaConfBaseException:  # ${hydra:…} has no value yet
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        problem = None if os.access(folder, os.W_OK | os.X_OK) else "it may not be written"
    except OSError as error:
        problem = error.strerror
    if problem is not None:
        # No error: Hydra makes a warning of what its callbacks raise, and goes on.
        sys.exit(
            f"{folder} cannot be the folder to write into: {problem}. Name one of your own with "
            f"{key}=DIR; what is to go on must be copied there first."
        )
