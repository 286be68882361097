"""What a resume changes in the run's directory, once it has been accepted."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from lmbench.run.overrides import record_overrides


class Resumed(L.Callback):
    """Takes up a run's directory when the first step or the test begins.

    It appends to ``overrides.jsonl``, removes the results, which are those of the weights of
    before, and lets TensorBoard forget what came after the checkpoint. Not earlier: a resume that
    is refused changes nothing.

    Args:
        run_dir: The run's directory.
        overrides: What this resume changes.
        first_step: The step that the run goes on with; 0 for one that starts over.
    """

    def __init__(self, run_dir: Path, overrides: list[str], first_step: int) -> None:
        self._run_dir = run_dir
        self._overrides = overrides
        self._first_step = first_step
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
            if self._first_step:
                _forget(trainer, self._first_step)
        self._is_done = True


def _forget(trainer: L.Trainer, first_step: int) -> None:
    """As SummaryWriter does with its ``purge_step``, for which it is too early when it is made."""
    writers: list[Any] = [
        logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)
    ]
    if not writers:
        return
    from tensorboard.compat.proto import event_pb2  # not there on every machine

    proto: Any = event_pb2  # its names are made when it is imported
    session_start = proto.SessionLog(status=proto.SessionLog.START)
    start = proto.Event(step=first_step, session_log=session_start)
    for writer in writers:
        writer._get_file_writer().add_event(start)
