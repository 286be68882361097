"""What an evaluation tells while it runs."""

import logging
import math
import re

import pytest

from lmbench.evaluation.progress import perplexity_of, shown


def test_a_phase_ends_with_its_figures(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    with shown("reading test", 30) as on_window:
        on_window(10, 10 * math.log(50))
        on_window(20, 20 * math.log(400))
    (record,) = caplog.records
    # the geometric mean of 50, 400 and 400
    assert re.fullmatch(
        r"reading test: [\d,]+ tokens/s, perplexity 200\.00 in \d\.\d s", record.getMessage()
    )
    assert capsys.readouterr() == ("", "")  # no bar where there is no terminal


def test_a_phase_that_breaks_off_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def break_off() -> None:
        with shown("reading test", 30) as on_window:
            on_window(10, 1.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert not caplog.records


@pytest.mark.parametrize(
    ("nll", "text"), [(0.0, "1.00"), (math.log(98.7), "98.70"), (800.0, "e^800.0")]
)
def test_perplexities_that_are_too_large_are_powers(nll: float, text: str) -> None:
    assert perplexity_of(nll) == text
