from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog

from lmbench.callbacks.resumed import Resumed
from lmbench.run.overrides import recorded_overrides

OVERRIDES = ["trainer.max_epochs=9", "loss.ar_alpha=1"]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "results.json").write_text("{}")
    return tmp_path


def trainer(*, is_global_zero: bool = True) -> Any:
    return SimpleNamespace(is_global_zero=is_global_zero, loggers=[])


def test_a_resume_that_is_refused_before_its_first_step_changes_nothing(run_dir: Path):
    callback, module = Resumed(run_dir, OVERRIDES, 0), SimpleNamespace()
    for hook in ("setup", "on_fit_start", "on_train_start", "on_train_epoch_start"):
        getattr(callback, hook)(trainer(), module, *(["fit"] if hook == "setup" else []))
    assert (run_dir / "results.json").exists()
    assert recorded_overrides(run_dir) == []


def test_the_first_step_takes_old_results_away_and_writes_the_overrides_once(run_dir: Path):
    callback, module = Resumed(run_dir, OVERRIDES, 0), SimpleNamespace()
    callback.on_train_batch_start(trainer(), module, None, 0)
    assert not (run_dir / "results.json").exists()
    (run_dir / "results.json").write_text("{}")  # those of the end
    callback.on_train_batch_start(trainer(), module, None, 1)
    callback.on_test_start(trainer(), module)
    assert recorded_overrides(run_dir) == OVERRIDES
    assert (run_dir / "results.json").exists()


def test_the_test_does_so_where_nothing_is_left_to_train(run_dir: Path):
    Resumed(run_dir, OVERRIDES, 0).on_test_start(trainer(), SimpleNamespace())
    assert recorded_overrides(run_dir) == OVERRIDES
    assert not (run_dir / "results.json").exists()


def test_one_process_alone_writes(run_dir: Path):
    callback = Resumed(run_dir, OVERRIDES, 0)
    callback.on_train_batch_start(trainer(is_global_zero=False), SimpleNamespace(), None, 0)
    assert recorded_overrides(run_dir) == []
    assert (run_dir / "results.json").exists()


@pytest.mark.parametrize("first_step", [0, 3])
def test_tensorboard_forgets_what_came_after_the_checkpoint(run_dir: Path, first_step: int):
    """By the event with which its SummaryWriter purges, before anything else is logged."""
    logger = TensorBoardLogger(run_dir, name="", version="")
    _ = logger.experiment  # opens the file, as Lightning's setup does, also of one that is refused
    taking_up: Any = SimpleNamespace(is_global_zero=True, loggers=[logger])
    Resumed(run_dir, [], first_step).on_train_batch_start(taking_up, taking_up, None, 0)
    logger.log_metrics({"value": 1.0}, first_step)
    logger.finalize("success")
    (path,) = run_dir.glob("events.*")
    _, *events = EventFileLoader(str(path)).Load()  # the first tells the version of the file
    kinds = [event.WhichOneof("what") for event in events]
    assert kinds == (["session_log", "summary"] if first_step else ["summary"])
    if first_step:
        assert (events[0].step, events[0].session_log.status) == (3, SessionLog.START)
