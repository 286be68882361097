"""Measures from configs."""

from dataclasses import dataclass

import pytest

from lmbench.errors import UserError
from lmbench.evaluation.measure import Measure
from lmbench.evaluation.split_perplexity import SplitPerplexity
from lmbench.instantiate.evaluator import build_measure

STANDARD = {"columns": 3, "tune": False, "save_tokens": True}  # in every config


@dataclass
class Mine(Measure):
    """A measure that does not read splits."""

    size: int = 1

    def outcomes(self, run, splits, name):
        yield from ()


def test_what_is_not_a_mode_is_refused():
    with pytest.raises(UserError, match=r"^evaluation: "):
        build_measure({"x": {"_target_": "collections.Counter"}})


def test_a_mode_is_built_and_one_that_is_null_is_left_out():
    cache = {"_target_": "lmbench.evaluation.cache.Cache"}
    measure = build_measure(STANDARD | {"cache": cache, "temperature": None})
    assert isinstance(measure, SplitPerplexity)
    assert [mode.name for mode in measure.modes] == ["cache"]
    assert (measure.settings.columns, measure.save_tokens) == (3, True)


def test_a_measure_of_ones_own_takes_its_own_keys():
    node = {"_target_": f"{__name__}.Mine", "size": 5, "columns": 3, "tune": False}
    assert build_measure(node) == Mine(5)
    with pytest.raises(UserError, match="tune"):  # it would have no effect
        build_measure(node | {"tune": True})
    with pytest.raises(UserError, match=r"evaluation\.siz"):
        build_measure(node | {"siz": 5})
