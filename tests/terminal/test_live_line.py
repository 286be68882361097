import io
import logging
import multiprocessing
from types import SimpleNamespace

import pytest
from rich.console import Console

from lmbench.terminal import live_line
from lmbench.terminal.live_line import LiveLine


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_line_fits_and_begins_with_what_matters_most(width: int):
    line = LiveLine()
    line.figures = ["epoch 12/20", "2 h 05 min left", "", "train ppl 113.4", "30,120 tokens/s"]
    line.share = 0.6
    console = Console(width=width, file=io.StringIO(), force_terminal=True, record=True)
    console.print(line.line(width))
    (shown,) = console.export_text().splitlines()
    assert len(shown.rstrip()) <= width
    assert shown.startswith("epoch 12/20  2 h 05 min left")
    assert ("tokens/s" in shown) == (width >= 80)
    assert ("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in shown) == (width >= 80)


@pytest.mark.parametrize(("process", "expected"), [("MainProcess", True), ("LokyProcess-1", False)])
def test_it_is_shown_in_a_terminal_that_no_other_job_uses(
    monkeypatch: pytest.MonkeyPatch, process: str, expected: bool
):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr(multiprocessing.current_process(), "name", process)
    line = LiveLine()
    line.figures = ["epoch 1/2"]
    line.start()
    assert line.is_shown == expected
    line.stop()
    assert ("epoch 1/2" in terminal.getvalue()) == expected


def test_without_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]):
    line = LiveLine()
    line.start()
    assert not line.is_shown
    line.stop()
    assert capsys.readouterr().out == ""


def test_without_a_terminal_the_figures_are_logged_every_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.INFO)
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr(live_line, "time", clock)
    started, other = LiveLine(), LiveLine()  # the other is that of another process
    started.start()
    for second in range(150):
        clock.monotonic = lambda now=second: float(now)
        started.show([f"test {second}", "", "2 min left"], None)
        other.show([f"other {second}"], None)
    assert caplog.messages == ["test 60, 2 min left", "test 120, 2 min left"]
    started.stop()
    clock.monotonic = lambda: 1000.0
    started.show(["test of nothing"], None)
    assert len(caplog.messages) == 2
