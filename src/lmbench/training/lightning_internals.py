"""All that lmbench needs of Lightning's internals, which a new version of Lightning may change.

A test fails when it does. Everything else in lmbench uses Lightning's public interface.
"""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim import Optimizer


def quieten_lightning() -> None:
    """Silences what Lightning says about devices and itself, and warnings that help nobody."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning").handlers.clear()  # the root's print the same lines
    # What a user's EarlyStopping or ModelSummary says is wanted.
    logging.getLogger("lightning.pytorch.callbacks").setLevel(logging.INFO)
    # At every epoch, Lightning 2.6 calls what torch 2.13 has deprecated.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", message="GPU available but not used")  # also about Apple's
    # A resume may remove the time limit.
    warnings.filterwarnings("ignore", message=r"(?s).*add the following callbacks.*TimeLimit")
    # It is about the steps of an epoch, but logging counts those of the run.
    warnings.filterwarnings("ignore", message="The number of training batches")


def forget_logged(trainer: L.Trainer) -> None:
    """Drops the values that steps have logged; means over the epoch stay.

    Lightning logs at the last step of a run, and would log what an earlier step has left.
    """
    for metric in trainer.fit_loop._results.values():
        metric._forward_cache = None


def set_max_steps(trainer: L.Trainer, max_steps: int) -> None:
    """Changes the limit on steps; -1 means none.

    With a limit, Lightning takes a checkpoint from an epoch's end for one from the middle of that
    epoch, so the limit must be hidden until the training starts.
    """
    trainer.fit_loop.epoch_loop.max_steps = max_steps


def resumes_within_epoch(trainer: L.Trainer) -> bool:
    """Whether the training continues in the middle of an epoch."""
    return trainer.fit_loop.restarted_mid_epoch


def num_windows_done(trainer: L.Trainer) -> int:
    """The number of windows of the current epoch that have been trained on."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def uncount_window(checkpoint: dict[str, Any]) -> None:
    """Undoes Lightning's counting of the window that is about to begin."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for count in (progress["total"], progress["current"]):
        count["ready"] = count["completed"]
    progress["is_last_batch"] = False


def replace_optimizer(trainer: L.Trainer, new: Optimizer) -> None:
    """Replaces the only optimizer with a new one, for the schedule too."""
    trainer.strategy.optimizers = [new]
    for config in trainer.lr_scheduler_configs:
        config.scheduler.optimizer = new
        # A schedule counts the steps of the optimizer it was made with, to warn of a wrong order.
        warnings.filterwarnings("ignore", message=r"Seems like `optimizer\.step\(\)` has been")


def purge_tensorboard(trainer: L.Trainer, first_step: int) -> None:
    """Makes TensorBoard forget what was logged from a step on.

    SummaryWriter's ``purge_step`` does so too, but must be given when it is made: too early here.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            from tensorboard.compat.proto import event_pb2  # not there on every machine

            proto: Any = event_pb2  # its names are made when it is imported
            experiment: Any = logger.experiment
            start = proto.SessionLog(status=proto.SessionLog.START)
            experiment._get_file_writer().add_event(proto.Event(step=first_step, session_log=start))


@contextmanager
def processes_ending_together(trainer: L.Trainer) -> Iterator[None]:
    """Kills the processes that Lightning has started from this one, if an error ends this one.

    On GPUs they would wait for it as long as NCCL does, half an hour.
    """
    try:
        yield
    except BaseException:
        launcher: Any = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
            # Lightning has a thread that kills this process too when it finds one of them dead.
            getattr(launcher, "procs", []).clear()
        raise
