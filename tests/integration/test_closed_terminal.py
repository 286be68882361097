"""A run whose terminal is closed ends as after any other signal."""

import fcntl
import os
import pty
import signal
import termios
from pathlib import Path

import pytest
import trainings
from small import SMALL


def take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_a_closed_terminal_saves_and_stops_the_run(tmp_path: Path):
    ours, theirs = pty.openpty()
    arguments = ("model=lstm", *SMALL, "trainer.max_epochs=10000", "hydra.run.dir=run")
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    options = {"start_new_session": True, "preexec_fn": take_terminal}
    process = trainings.start(tmp_path, *arguments, **streams, **options)
    os.close(theirs)
    shown = b""
    while b"epoch 2/" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert "Stopped. To resume" in (tmp_path / "run/train.log").read_text()
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
