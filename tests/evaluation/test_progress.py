"""What an evaluation reports while it runs."""

import io
import logging
import math
import re
import sys

import pytest

from lmbench.evaluation.progress import progress_of


def test_a_phase_ends_with_its_figures(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    with progress_of("reading test", 30) as on_window:
        on_window(10, 10 * math.log(50))
        on_window(20, 20 * math.log(400))
    (record,) = caplog.records
    # the geometric mean of 50, 400 and 400
    assert re.fullmatch(
        r"reading test: [\d,]+ tokens/s, perplexity 200 in \d\.\d s", record.getMessage()
    )
    assert capsys.readouterr() == ("", "")  # no bar where there is no terminal


@pytest.mark.parametrize("phase", ["lstm[v2]", "[/b]"])
def test_a_phase_of_any_name_has_a_bar(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_of(phase, 10) as on_window:
        on_window(10, 8000.0)
    assert phase in terminal.getvalue()
