"""What a resume changes in the run's directory, once it has been accepted."""

from pathlib import Path
from typing import Any

import lightning as L

from lmbench.run.config import record_overrides


class Resumed(L.Callback):
    """Appends to ``overrides.jsonl``, and removes results, when the first step or the test begins.

    The results are those of the weights of before. Not earlier: a resume that is refused changes
    nothing.

    Args:
        run_dir: The run's directory.
        overrides: What this resume changes.
    """

    def __init__(self, run_dir: Path, overrides: list[str]) -> None:
        self._run_dir = run_dir
        self._overrides = overrides
        self._is_done = False

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Does it as training goes on."""
        self._take_up(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Does it where nothing was left to train."""
        self._take_up(trainer)

    def _take_up(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and not self._is_done:
            record_overrides(self._run_dir, self._overrides)
            (self._run_dir / "results.json").unlink(missing_ok=True)
        self._is_done = True
