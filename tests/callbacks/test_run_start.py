import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import SMALL, config_of

from lmbench.callbacks import run_start
from lmbench.callbacks.run_start import RunStart
from lmbench.cli.train import _fit_and_test, _resume_errors_named
from lmbench.errors import UserError
from lmbench.perplexity import Score
from lmbench.run.config import read_run_config, write_run_config

CONFIG, CHANGED = config_of(*SMALL), config_of(*SMALL, "trainer.max_epochs=9")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_run_config(CONFIG, tmp_path)
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "diverged.txt").touch()
    return tmp_path


def trainer(*, is_global_zero: bool = True) -> Any:
    return SimpleNamespace(is_global_zero=is_global_zero, early_stopping_callbacks=[], loggers=[])


def is_as_it_was(run_dir: Path) -> bool:
    config = read_run_config(run_dir)
    assert config in (CONFIG, CHANGED)
    for name in ("results.json", "diverged.txt"):
        assert (run_dir / name).exists() == (config == CONFIG)
    return config == CONFIG


def test_a_resume_that_is_refused_before_its_first_step_changes_nothing(run_dir: Path):
    callback, module = RunStart(run_dir, CHANGED), SimpleNamespace()
    for hook in ("setup", "on_fit_start", "on_train_start", "on_train_epoch_start"):
        getattr(callback, hook)(trainer(), module, *(["fit"] if hook == "setup" else []))
    assert is_as_it_was(run_dir)
    assert not callback.has_begun


def test_the_first_step_removes_old_results_and_writes_the_config_once(run_dir: Path):
    callback, module = RunStart(run_dir, CHANGED), SimpleNamespace()
    callback.on_train_batch_start(trainer(), module, None, 0)
    assert not is_as_it_was(run_dir)
    assert callback.has_begun
    (run_dir / "results.json").write_text("{}")  # the new ones, written at the end
    callback.on_train_batch_start(trainer(), module, None, 1)
    callback.setup(trainer(), module, "test")
    assert (run_dir / "results.json").exists()


def test_testing_does_the_same_if_nothing_is_left_to_train(
    run_dir: Path, caplog: pytest.LogCaptureFixture
):
    RunStart(run_dir, CHANGED).setup(trainer(), SimpleNamespace(), "test")
    assert not is_as_it_was(run_dir)
    caplog.set_level(logging.INFO)
    for first_step, trains in ((0, False), (3, True), (3, False)):
        assert caplog.messages == []
        callback, module = RunStart(run_dir, None), SimpleNamespace()
        callback.first_step = first_step
        if trains:
            callback.on_train_batch_start(trainer(), module, None, 0)
        callback.setup(trainer(), module, "test")
    assert caplog.messages == ["nothing was left to train; testing again"]


def test_a_resume_that_changes_no_value_leaves_the_config(run_dir: Path):
    RunStart(run_dir, None).setup(trainer(), SimpleNamespace(), "test")
    assert read_run_config(run_dir) == CONFIG
    assert not (run_dir / "results.json").exists()


def test_only_one_process_writes(run_dir: Path):
    callback = RunStart(run_dir, CHANGED)
    callback.on_train_batch_start(trainer(is_global_zero=False), SimpleNamespace(), None, 0)
    assert is_as_it_was(run_dir)


@pytest.mark.parametrize("first_step", [0, 3])
def test_tensorboard_forgets_what_came_after_the_checkpoint(
    run_dir: Path, first_step: int, monkeypatch: pytest.MonkeyPatch
):
    purged: list[int] = []
    monkeypatch.setattr(run_start, "purge_tensorboard", lambda _, step: purged.append(step))
    callback = RunStart(run_dir, None)
    callback.first_step = first_step
    for index in range(2):
        callback.on_train_batch_start(trainer(), SimpleNamespace(), None, index)
    assert purged == ([first_step] if first_step else [])


@pytest.mark.parametrize(
    ("error", "is_of_checkpoint"),
    [
        (KeyError("state_dict"), True),
        (torch.distributed.DistNetworkError("EADDRINUSE"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_only_damage_is_blamed_on_the_checkpoint(
    run_dir: Path, error: Exception, is_of_checkpoint: bool
):
    path = run_dir / "last.ckpt"
    expected, part = (UserError, str(path)) if is_of_checkpoint else (type(error), str(error))
    with pytest.raises(expected, match=part), _resume_errors_named(RunStart(run_dir, None), path):
        raise error


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "^No epoch of this run has been validated.*Train one epoch more"),
        ({"val": Score(math.inf, 1)}, "^No validation gave a finite.*Lower optimizer.lr"),
    ],
)
def test_without_a_best_checkpoint_it_is_said_why(scores: dict[str, Score], message: str):
    trainer: Any = SimpleNamespace(fit=lambda *args, **options: None)
    module = SimpleNamespace(best=None, scores=scores)
    with pytest.raises(UserError, match=message):
        _fit_and_test(trainer, module, None, None)
