import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from lmbench.errors import UserError
from lmbench.train import _processes_end_together


class Launcher:
    def __init__(self) -> None:
        self.sent: list[int] = []

    def kill(self, signum: int) -> None:
        self.sent.append(signum)


def folder_of(resume: Any) -> str:
    """Where Hydra writes, as conf/train.yaml has it."""
    directory = '${lmbench.run_dir:${oc.select:resume,""},new}'
    return OmegaConf.create({"resume": resume, "directory": directory}).directory


def test_a_resumed_run_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "0", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert [folder_of(resume) for resume in ("run", 0, 1)] == ["run", "0", "1"]  # as Hydra reads it
    no_run = ("???", "", None, "no run", 2, "x" * 300)
    assert [folder_of(resume) for resume in no_run] == ["new"] * len(no_run)


def trainer_with(launcher: Launcher | None) -> SimpleNamespace:
    return SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))


def test_an_error_of_one_process_ends_those_that_would_wait_for_it():
    launcher = Launcher()
    with pytest.raises(UserError, match="full"), _processes_end_together(trainer_with(launcher)):
        raise UserError("The disk is full.")
    assert launcher.sent == [signal.SIGKILL]


def test_processes_that_end_well_are_left_alone():
    launcher = Launcher()
    with _processes_end_together(trainer_with(launcher)):
        pass
    assert launcher.sent == []


def test_a_single_process_has_no_launcher():
    with pytest.raises(UserError, match="full"), _processes_end_together(trainer_with(None)):
        raise UserError("The disk is full.")
