import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import SMALL, config_of

from lmbench.callbacks import run_start
from lmbench.callbacks.run_start import RunStart
from lmbench.cli.train import _fit_and_test
from lmbench.errors import Diverged, UserError
from lmbench.run.choice import ChosenRun
from lmbench.run.config import read_run_config, write_run_config
from lmbench.run.directory import noted_overrides

CONFIG, CHANGED = config_of(*SMALL), config_of(*SMALL, "trainer.max_epochs=9")
NEW = ChosenRun(CONFIG)
RESUMED, SAME = (ChosenRun(CONFIG, resumes=True, changed=changed) for changed in (CHANGED, None))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    write_run_config(CONFIG, tmp_path, ["seed=1"])
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
    assert noted_overrides(run_dir) == (["seed=1"] if config == CONFIG else None)
    return config == CONFIG


def test_a_resume_that_is_refused_before_its_first_step_changes_nothing(run_dir: Path):
    callback, module = RunStart(RESUMED, run_dir), SimpleNamespace()
    for hook in ("setup", "on_fit_start", "on_train_start", "on_train_epoch_start"):
        getattr(callback, hook)(trainer(), module, *(["fit"] if hook == "setup" else []))
    assert is_as_it_was(run_dir)
    assert not callback.has_begun


def test_the_first_step_removes_old_results_and_writes_the_config_once(run_dir: Path):
    callback, module = RunStart(RESUMED, run_dir), SimpleNamespace()
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
    RunStart(RESUMED, run_dir).setup(trainer(), SimpleNamespace(), "test")
    assert not is_as_it_was(run_dir)
    caplog.set_level(logging.INFO)
    for first_step, trains in ((0, False), (3, True), (3, False)):
        callback, module = RunStart(SAME, run_dir), SimpleNamespace()
        callback.first_step = first_step
        if trains:
            callback.on_train_batch_start(trainer(), module, None, 0)
        callback.setup(trainer(), module, "test")
    assert caplog.messages == [
        "continuing after step 3",
        "nothing was left to train; testing again",
    ]


def test_a_resume_that_changes_no_value_leaves_the_config(run_dir: Path):
    RunStart(SAME, run_dir).setup(trainer(), SimpleNamespace(), "test")
    assert read_run_config(run_dir) == CONFIG
    assert not (run_dir / "results.json").exists()


def test_a_resume_removes_what_killed_processes_were_writing(run_dir: Path, checkpoint: Path):
    left = ["metrics.csv.12.tmp", "checkpoints/last.ckpt.345.tmp"]
    kept = ["evaluation-cache-test.json.12.tmp", "checkpoints/tuning.json.12.tmp", "notes.tmp"]
    for name in left + kept:
        (run_dir / name).touch()
    for is_first in (False, True):
        with RunStart(SAME, run_dir).in_directory(is_first=is_first):
            assert all((run_dir / name).exists() != is_first for name in left)
            assert all((run_dir / name).exists() for name in kept)


def test_only_one_process_writes(run_dir: Path):
    callback = RunStart(RESUMED, run_dir)
    callback.on_train_batch_start(trainer(is_global_zero=False), SimpleNamespace(), None, 0)
    assert is_as_it_was(run_dir)


@pytest.mark.parametrize("first_step", [0, 3])
def test_tensorboard_forgets_what_came_after_the_checkpoint(
    run_dir: Path, first_step: int, monkeypatch: pytest.MonkeyPatch
):
    purged: list[int] = []
    monkeypatch.setattr(run_start, "purge_tensorboard", lambda _, step: purged.append(step))
    callback = RunStart(SAME, run_dir)
    callback.first_step = first_step
    for index in range(2):
        callback.on_train_batch_start(trainer(), SimpleNamespace(), None, index)
    assert purged == ([first_step] if first_step else [])


def fail_in(start: RunStart, error: Exception, *, has_begun: bool = False) -> None:
    with start.in_directory(is_first=True):
        start.has_begun = has_begun
        raise error


@pytest.fixture
def checkpoint(run_dir: Path) -> Path:
    path = run_dir / "checkpoints/last.ckpt"
    path.parent.mkdir()
    path.touch()
    return path


@pytest.mark.parametrize(
    ("error", "is_of_checkpoint"),
    [
        (KeyError("state_dict"), True),
        (torch.distributed.DistNetworkError("EADDRINUSE"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_only_damage_is_blamed_on_the_checkpoint(
    run_dir: Path, checkpoint: Path, error: Exception, is_of_checkpoint: bool
):
    expected, part = (UserError, str(checkpoint)) if is_of_checkpoint else (type(error), str(error))
    with pytest.raises(expected, match=part):
        fail_in(RunStart(SAME, run_dir), error)


def test_an_error_of_the_training_is_not_one_of_the_checkpoint(run_dir: Path, checkpoint: Path):
    with pytest.raises(KeyError):
        fail_in(RunStart(SAME, run_dir), KeyError("a defect"), has_begun=True)


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_new_run_that_is_refused_leaves_nothing(tmp_path: Path, has_begun: bool):
    with pytest.raises(UserError, match="no"):
        fail_in(RunStart(NEW, tmp_path), UserError("no"), has_begun=has_begun)
    assert (tmp_path / "config.yaml").exists() == has_begun


def test_a_resumed_run_that_has_not_saved_yet_begins_anew(run_dir: Path):
    with (
        pytest.raises(UserError, match="has ended"),
        RunStart(SAME, run_dir).in_directory(is_first=True),
    ):
        pass
    (run_dir / "results.json").unlink()
    (run_dir / "metrics.csv").touch()
    with RunStart(SAME, run_dir).in_directory(is_first=True) as last:
        assert last is None
        assert not (run_dir / "metrics.csv").exists()


def test_a_divergence_is_noted(tmp_path: Path):
    with pytest.raises(Diverged), RunStart(NEW, tmp_path).in_directory(is_first=True):
        raise Diverged("too high")
    assert (tmp_path / "diverged.txt").read_text() == "too high\n"


def test_without_a_best_checkpoint_it_is_said_why():
    trainer: Any = SimpleNamespace(fit=lambda *args, **options: None)
    module: Any = SimpleNamespace(best=None)
    with pytest.raises(Diverged, match=r"^No validation gave a finite.*Lower optimizer\.lr"):
        _fit_and_test(trainer, module, None, None)
