import io
import logging

import pytest

from lmbench.terminal.console import ConsoleHandler


@pytest.fixture
def log() -> logging.Logger:
    """A logger that writes to the console as job number 3."""
    logger = logging.Logger("any")
    logger.addHandler(ConsoleHandler(3))
    return logger


def test_a_line_goes_to_the_current_stdout(log: logging.Logger, monkeypatch: pytest.MonkeyPatch):
    """A live bar replaces stdout for as long as it is shown."""
    first, second = io.StringIO(), io.StringIO()
    for stream in (first, second):
        monkeypatch.setattr("sys.stdout", stream)
        log.info("some %s", "words")
    for stream in (first, second):
        date, time, *rest = stream.getvalue().split(" ")
        assert (len(date), len(time), rest) == (10, 8, ["#3", "some", "words\n"])


def test_a_terminal_shows_no_date(log: logging.Logger, monkeypatch: pytest.MonkeyPatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout", terminal)
    log.warning("words")
    assert terminal.getvalue()[8:] == " #3 Warning: words\n"


def test_errors_go_to_stderr_as_they_are(log: logging.Logger, capsys: pytest.CaptureFixture[str]):
    log.error("It is wrong.")
    assert capsys.readouterr() == ("", "#3 It is wrong.\n")


def test_a_terminal_breaks_long_lines_at_spaces(
    log: logging.Logger, monkeypatch: pytest.MonkeyPatch
):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    command = f"  lmbench-train {'x=1 ' * 10}"  # is copied
    log.info("what is to be done with forty-three-year-old lines\n%s\n│%s", command, "─" * 50)
    first, second, *others = terminal.getvalue().splitlines()
    assert (first[8:], second) == (" #3 what is to be done with", "forty-three-year-old lines")
    assert others == [command, f"│{'─' * 50}"]
