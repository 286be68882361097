"""Writes down what a resume has changed, once it has been accepted."""

from pathlib import Path
from typing import Any

import lightning as L

from lmbench.run_config import record_overrides


class RecordOverrides(L.Callback):
    """Appends to ``overrides.jsonl`` when the first step or the test begins.

    Not before: a resume that is refused would have every later one refused as well.

    Args:
        run_dir: of the run.
        overrides: of this resume.
    """

    def __init__(self, run_dir: Path, overrides: list[str]) -> None:
        self._run_dir = run_dir
        self._overrides = overrides

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Training goes on."""
        self._record(trainer)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """There was nothing left to train."""
        self._record(trainer)

    def _record(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            record_overrides(self._run_dir, self._overrides)
        self._overrides = []
