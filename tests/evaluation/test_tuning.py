"""The grid in one pass against each of its settings alone."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest

from lmbench.evaluation.cache import Cache
from lmbench.evaluation.dynamic import Dynamic
from lmbench.evaluation.evaluator import Evaluator
from lmbench.evaluation.mc_dropout import MCDropout
from lmbench.evaluation.reading import Reading
from lmbench.evaluation.temperature import Temperature
from lmbench.evaluation.tuning import tune_in_turn, warn_of_edges
from lmbench.perplexity import Score


@pytest.mark.parametrize("warmup", [False, True])
def test_the_whole_grid_equals_each_setting_alone(
    make_reading: Callable[..., Reading], make_evaluator: Callable[..., Evaluator], warmup: bool
) -> None:
    reading, evaluator = make_reading(300), make_evaluator(window=20)
    grid = {"windows": [60, 10, 200], "thetas": [0.1, 0.5], "interpolations": [0.0, 0.1, 0.4]}
    cache = Cache(warmup=warmup, grid=grid)

    def alone(setting: Cache) -> float:
        return setting.rescored(reading, evaluator).score.nll

    tried = cache.tune(reading, evaluator)
    settings = [
        Cache(*values, warmup) for values in product([10, 60, 200], [0.1, 0.5], [0.0, 0.1, 0.4])
    ]
    assert [row.pop("nll") for row in tried] == pytest.approx(list(map(alone, settings)), rel=1e-6)
    assert tried == [setting.settings()["cache"] for setting in settings]
    assert replace(cache, grid=None) == min(settings, key=alone)


def of_parabola(grid: dict[str, Any]) -> tuple[Dynamic, list]:
    """Tunes something whose best lr is 0.3 and whose best decay is 0.1, whatever the lr."""
    dynamic = Dynamic("sgd", lr=9.0, decay=0.2, epsilon=0.7, grid=grid)
    calls: list[tuple[float, float]] = []

    def score() -> Score:
        calls.append((dynamic.lr, dynamic.decay))
        lost = dynamic.lr > 5
        nats = math.nan if lost else (dynamic.lr - 0.3) ** 2 + (dynamic.decay - 0.1) ** 2
        return Score(nats, 1)

    tried = tune_in_turn(dynamic, score)
    assert len(calls) == len(set(calls)) == len(tried)
    warn_of_edges(dynamic)
    return dynamic, tried


def test_the_lr_is_searched_first_and_then_the_decay(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    best, tried = of_parabola({"lrs": [0.1, 0.3, 1.0, 10.0], "decays": [0.0, 0.1, 0.2, 0.5]})
    assert replace(best, grid=None) == Dynamic("sgd", lr=0.3, decay=0.1, epsilon=0.7)
    assert [(row["lr"], row["decay"]) for row in tried] == [
        *((lr, 0.2) for lr in (0.1, 0.3, 1.0, 10.0)),
        *((0.3, decay) for decay in (0.0, 0.1, 0.5)),
    ]
    assert tried[3]["nll"] is None  # nan, as from an lr that breaks the model, is never the best
    assert not caplog.records


def test_an_interrupted_tuning_goes_on_where_it_was(
    make_evaluator: Callable[..., Evaluator], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    readings: list[float] = []
    read_once, model = Evaluator.read, make_evaluator().model
    grid = {"multipliers": [0.1, 0.2, 0.3, 0.4]}

    def tune(most: int, **options: Any) -> dict[str, Any]:
        mode = MCDropout(samples=2, grid=grid)
        evaluator = make_evaluator(model, columns=1, modes=[mode], **options)

        def read(self: Evaluator, *how: Any) -> Reading:
            if len(readings) == most:
                raise KeyboardInterrupt
            readings.append(mode.multiplier)
            return read_once(self, *how)

        monkeypatch.setattr(Evaluator, "read", read)
        return evaluator.tune()

    with pytest.raises(KeyboardInterrupt):
        tune(2)
    tuned = tune(9)
    assert readings == [0.1, 0.2, 0.3, 0.4]
    assert tune(4) == tuned  # all are kept
    (tmp_path / "tuning.json").write_text('{"made_from": 3, "scores": [')
    assert tune(99) == tuned
    assert readings[4:] == readings[:4]
    tune(99, window=7)  # another way to read
    assert readings[8:] == readings[:4]


def test_modes_act_in_the_order_of_their_names(make_evaluator: Callable[..., Evaluator]) -> None:
    """Each is tuned on top of those before it, and the evaluation is named after them sorted."""
    for modes in permutations((Temperature(), MCDropout(), Dynamic())):
        names = [mode.name for mode in make_evaluator(modes=modes).modes]
        assert names == ["dynamic", "mc_dropout", "temperature"]


def test_a_best_value_at_the_edge_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    best, _ = of_parabola({"lrs": [0.0, 1.0, 2.0], "decays": [0.1, 0.2]})
    assert best.lr == 0.0  # nothing is lower
    assert not caplog.records
    of_parabola({"lrs": [0.3, 1.0, 2.0], "decays": [0.1, 0.2]})
    (record,) = caplog.records  # two values have no inside, and are not reported
    assert "the best dynamic.lr, 0.3, is at or beyond the edge" in record.getMessage()
    best, _ = of_parabola({"lrs": [0.0, 0.3, 2.0], "decays": [0.3, 0.5, 1.0]})
    assert best.decay == 0.2  # the one with which the lr was tuned
    assert "the best dynamic.decay, 0.2, is at or beyond" in caplog.messages[-1]


def test_an_evaluator_reports_edges(
    make_evaluator: Callable[..., Evaluator], caplog: pytest.LogCaptureFixture
) -> None:
    """An untrained model knows nothing: the flattest distribution is the best."""
    modes = [Temperature(grid={"values": [0.1, 0.2, 0.3]})]
    make_evaluator(columns=1, modes=modes).tune()
    assert "the best temperature.value, 0.3, is at or beyond the edge" in caplog.text


@pytest.mark.parametrize(
    ("mode", "name", "values"),
    [
        (Cache, "window", [0]),
        (Cache, "theta", [math.inf]),
        (Cache, "interpolation", [-0.1, 1.0]),
        (Dynamic, "rule", ["adam"]),
        (Dynamic, "lr", [-1.0, math.inf]),
        (Dynamic, "decay", [1.1, -0.1]),
        (Dynamic, "epsilon", [0.0, math.inf]),
        (Dynamic, "statistics", [{"columns": 0}, {"columns": None}, {"segments": 0}]),
        (MCDropout, "multiplier", [-0.1, math.inf]),
        (MCDropout, "samples", [0]),
        (Temperature, "value", [0.0, -1.0, math.inf, math.nan]),
        (Cache, "grid", [{"windows": [5], "thetas": []}, {"windows": [5, 0]}, {"windows": 5}]),
        (Cache, "grid", [{"interpolations": [0.1, 1.5]}]),
        (Dynamic, "grid", [{"lrs": [-0.1]}, *({"num_tokens": n} for n in (1e4, -5, 0, True))]),
    ],
)
def test_values_out_of_range_are_refused(mode: Any, name: str, values: list[Any]) -> None:
    """Those of a grid, too, before anything is read."""
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name}[.a-z_]*:? .*must "):
            mode(**{name: value})


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        (Cache, {"grid": {"depths": [1]}}, r"^grid\.depths"),
        (Dynamic, {"statistics": {"column": 4}}, "^statistics has columns .* but no column$"),
    ],
)
def test_unknown_settings_are_refused(mode: Any, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mode(**options)
