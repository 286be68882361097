import signal
from types import SimpleNamespace

import pytest

from lmbench.command.processes import processes_end_together
from lmbench.errors import UserError


class Launcher:
    def __init__(self) -> None:
        self.sent: list[int] = []
        self.procs = ["one"]

    def kill(self, signum: int) -> None:
        self.sent.append(signum)


def trainer_with(launcher: Launcher | None) -> SimpleNamespace:
    return SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))


def test_an_error_of_one_process_ends_those_that_would_wait_for_it():
    launcher = Launcher()
    with pytest.raises(UserError, match="full"), processes_end_together(trainer_with(launcher)):
        raise UserError("The disk is full.")
    assert launcher.sent == [signal.SIGKILL]
    assert launcher.procs == []  # Lightning's thread would find it dead, and kill this one too


def test_processes_that_end_well_are_left_alone():
    launcher = Launcher()
    with processes_end_together(trainer_with(launcher)):
        pass
    assert launcher.sent == []
    assert launcher.procs == ["one"]


def test_a_single_process_has_no_launcher():
    with pytest.raises(UserError, match="full"), processes_end_together(trainer_with(None)):
        raise UserError("The disk is full.")
