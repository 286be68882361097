import io
import logging
import multiprocessing
from collections.abc import Callable

import pytest
from trainings import Clock

from lmbench.terminal import live_line
from lmbench.terminal.live_line import LiveLine

FIGURES = ["best valid 98.21", "train ppl 113.4", "30,120 tokens/s"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live_line, "time", clock)
    return clock


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Makes stdout a terminal; not a fixture, as pytest replaces stdout after those."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    return terminal


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_line_fits_and_begins_with_what_matters_most(
    width: int, monkeypatch: pytest.MonkeyPatch
):
    open_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(width))
    line = LiveLine("training", 1.0)
    assert line.update("epoch 12/20", 0.6, lambda: FIGURES)
    table = line._progress.get_renderable()
    (shown,) = line._progress.console.render_lines(table, pad=False)
    line.stop()
    text = "".join(segment.text for segment in shown)
    assert len(text.rstrip()) <= width
    assert text.startswith("epo")
    assert "best valid" in text
    assert ("tokens/s" in text) == (width >= 80)
    assert ("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in text) == (width >= 80)


@pytest.mark.parametrize(("process", "expected"), [("MainProcess", True), ("LokyProcess-1", False)])
def test_it_is_shown_in_a_terminal_that_no_other_job_uses(
    monkeypatch: pytest.MonkeyPatch, process: str, expected: bool
):
    terminal = open_terminal(monkeypatch)
    monkeypatch.setattr(multiprocessing.current_process(), "name", process)
    line = LiveLine("epoch 1/2", None)
    assert line.is_shown == expected
    line.stop()
    assert ("epoch 1/2" in terminal.getvalue()) == expected


def test_a_closed_terminal_does_not_hide_why_the_run_ends(
    monkeypatch: pytest.MonkeyPatch,
):
    terminal = open_terminal(monkeypatch)
    line = LiveLine("epoch 1/2", None)
    assert line.is_shown

    def fail(text: str) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(terminal, "write", fail)
        line.stop()


def test_without_a_terminal_the_figures_are_logged_every_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    caplog.set_level(logging.INFO)
    line = LiveLine("test", None)
    for second in range(150):
        clock.now = 1000.0 + second
        line.update(f"test {second}", None, lambda: ["", "2 left"])
    line.stop()
    assert caplog.messages == ["test 60, 2 left", "test 120, 2 left"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("start", "seconds", "left"),
    [
        (0.0, (0, 60, 120), "4 min left"),  # a twelfth a minute, from the first update on
        (0.5, (0, 60, 120), "4 min left"),  # a resumed run's pace is that since the resume
        (0.0, (0, 1, 2), ""),
    ],
)
def test_the_time_left_is_at_the_pace_so_far(
    clock: Clock, start: float, seconds: tuple[int, ...], left: str
):
    line = LiveLine("training", 1.0, done=start)
    for index, second in enumerate(seconds, start=1):
        clock.now = 1000.0 + second
        line.update("training", start + (1 - start) * index / 7, list)
    assert line.left == left


def test_figures_are_gathered_only_when_they_are_shown(clock: Clock):
    calls: list[int] = []

    def figures() -> list[str]:
        calls.append(1)
        return []

    line = LiveLine("training", 1.0)
    shown: Callable[[], bool] = lambda: line.update("training", 0.5, figures)  # noqa: E731
    assert [shown(), shown()] == [True, False]
    assert len(calls) == 1
