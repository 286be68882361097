import io

import pytest
from rich.console import Console

from lmbench.live_line import LiveLine


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


def test_without_a_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]):
    line = LiveLine()
    line.start()
    assert not line.is_shown
    line.stop()
    assert capsys.readouterr().out == ""
