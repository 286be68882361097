"""The grid in one pass against each of its settings alone."""

import itertools
import logging
import math
from collections.abc import Callable

import pytest

from lmbench.evaluation.cache import Cache, with_cache
from lmbench.evaluation.dynamic import Dynamic
from lmbench.evaluation.reading import Reading
from lmbench.evaluation.tuning import CacheGrid, DynamicGrid, tune_cache, tune_dynamic


@pytest.mark.parametrize("warmup", [False, True])
def test_the_whole_grid_equals_each_setting_alone(
    make_reading: Callable[..., Reading], warmup: bool
) -> None:
    reading = make_reading(300)
    grid = CacheGrid(windows=[60, 10, 200], thetas=[0.1, 0.5], interpolations=[0.0, 0.1, 0.4])
    best, tried = tune_cache(reading, Cache(warmup=warmup), grid, steps_at_once=20)
    assert len(tried) == 3 * 2 * 3
    for row in tried:
        nll = row.pop("nll")
        alone = with_cache(reading, Cache(**row), steps_at_once=20).nll
        assert nll == pytest.approx(alone, rel=1e-6)
    settings = [
        Cache(*values, warmup)
        for values in itertools.product([10, 60, 200], [0.1, 0.5], [0.0, 0.1, 0.4])
    ]
    assert best == min(settings, key=lambda s: with_cache(reading, s, steps_at_once=20).nll)


def of_parabola(caplog: pytest.LogCaptureFixture, grid: DynamicGrid) -> tuple[Dynamic, list]:
    """Tunes something whose best lr is 0.3 and whose best decay is 0.1, whatever the lr."""
    caplog.set_level(logging.WARNING)
    calls: list[Dynamic] = []

    class Scored:
        def __init__(self, setting: Dynamic) -> None:
            calls.append(setting)
            lost = setting.lr > 5
            self.nll = math.nan if lost else (setting.lr - 0.3) ** 2 + (setting.decay - 0.1) ** 2

    best, tried = tune_dynamic(Scored, Dynamic("sgd", lr=9.0, decay=0.2, epsilon=0.7), grid)
    assert len(calls) == len(set(calls)) == len(tried)
    return best, tried


def test_the_lr_is_searched_first_and_then_the_decay(caplog: pytest.LogCaptureFixture) -> None:
    grid = DynamicGrid(lrs=[0.1, 0.3, 1.0, 10.0], decays=[0.0, 0.1, 0.2, 0.5])
    best, tried = of_parabola(caplog, grid)
    assert best == Dynamic("sgd", lr=0.3, decay=0.1, epsilon=0.7)
    assert [(row["lr"], row["decay"]) for row in tried] == [
        *((lr, 0.2) for lr in (0.1, 0.3, 1.0, 10.0)),
        *((0.3, decay) for decay in (0.0, 0.1, 0.5)),
    ]
    assert tried[3]["nll"] is None  # nan, as of an lr that breaks the model, is never the best
    assert not caplog.records


def test_a_best_value_at_the_edge_is_told(caplog: pytest.LogCaptureFixture) -> None:
    of_parabola(caplog, DynamicGrid(lrs=[0.3, 1.0, 2.0], decays=[0.1, 0.2]))
    (record,) = caplog.records  # two values have no inside, and are not told
    assert "the best lr, 0.3, is at the edge" in record.getMessage()


@pytest.mark.parametrize(
    "options",
    [
        {"windows": [], "thetas": [0.1], "interpolations": [0.1]},
        {"windows": [0], "thetas": [0.1], "interpolations": [0.1]},
        {"windows": [5], "thetas": [0.1], "interpolations": [0.1, 1.5]},
    ],
)
def test_grids_of_the_cache_are_checked_before_anything_is_read(options: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        CacheGrid(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"lrs": [0.1], "decays": []},
        {"lrs": [-0.1], "decays": [0.1]},
        {"lrs": [0.1], "decays": [2.0]},
        {"lrs": [0.1], "decays": [0.1], "num_tokens": 1},
    ],
)
def test_grids_of_dynamic_evaluation_are_checked_too(options: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        DynamicGrid(**options)
