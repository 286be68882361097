from typing import Any

from lmbench.report._evaluations import protocol_text

READING = {"name": "any", "protocol": "standard", "columns": 1, "burn_in": 512, "window": 70}
CACHE = {"window": 3785, "theta": 0.662, "interpolation": 0.1279, "warmup": False}
DYNAMIC = {"rule": "rms", "lr": 5e-5, "decay": 0.002, "epsilon": 2e-5}
STATISTICS = {"columns": 100, "segments": None}
READ = "protocol standard, columns 1, burn-in 512"


def text(tuned: dict[str, Any] | None = None, **evaluation: Any) -> str:
    return protocol_text({"evaluation": READING | evaluation, "tuned": tuned})


def grid(settings: dict[str, Any], **tried: list[Any]) -> list[dict[str, Any]]:
    """One key after another, as when dynamic evaluation is tuned."""
    rows = [settings | {key: value} for key, values in tried.items() for value in values]
    return [row | {"nll": 4.0} for row in rows]


def test_what_affects_results_is_named_and_the_window_of_a_plain_reading_is_not():
    assert text(cache=None, dynamic=None, statistics=None) == READ
    assert text(window=5) == READ
    assert text(columns={"valid": 10, "test": 1}).startswith(
        "protocol standard, columns 10 (valid) and 1 (test), "
    )


def test_a_mode_of_any_name_is_named():
    assert text(temperature={"value": 1.5}) == f"{READ}, window 70, temperature (value 1.5)"


def test_settings_that_were_given():
    assert text(cache=CACHE) == (
        f"{READ}, window 70, cache (window 3785, theta 0.662, interpolation 0.1279)"
    )
    assert text(cache=CACHE | {"warmup": True}, window=35) == (
        f"{READ}, window 35, cache (window 3785, theta 0.662, interpolation 0.1279, warmup True)"
    )
    assert text(dynamic=DYNAMIC, statistics=STATISTICS, cache=CACHE, window=5) == (
        f"{READ}, window 5, cache (window 3785, theta 0.662, interpolation 0.1279), dynamic "
        "(rule rms, lr 5e-05, decay 0.002, epsilon 2e-05), statistics (columns 100)"
    )
    dropout = {"multiplier": 0.5, "samples": 8}
    assert text(mc_dropout=dropout, window=35) == (  # its masks last for a window
        f"{READ}, window 35, mc_dropout (multiplier 0.5, samples 8)"
    )
    assert text(dynamic=DYNAMIC | {"decay": 0}) == text(dynamic=DYNAMIC | {"decay": 0.0})


def test_settings_that_were_tuned_may_differ():
    tried = grid(CACHE, window=[500, 3785], theta=[0.1, 0.5], interpolation=[0.05, 0.1])
    first = text(cache=CACHE, tuned={"num_tokens": None, "cache": tried})
    assert first == f"{READ}, window 70, cache (tuned on valid)"
    chosen = CACHE | {"window": 500, "theta": 0.1}
    assert text(cache=chosen, tuned={"num_tokens": None, "cache": tried}) == first


def test_settings_that_the_grid_does_not_vary_may_not_differ():
    """Interpolation has a single value; dynamic evaluation varies only lr and decay."""
    tuned = {
        "num_tokens": 20_000,
        "dynamic": grid(DYNAMIC, lr=[1e-5, 5e-5], decay=[0.001, 0.002]),
        "cache": grid(CACHE, window=[500, 3785], theta=[0.1, 0.5]),
    }
    assert text(dynamic=DYNAMIC, cache=CACHE, window=5, tuned=tuned) == (
        f"{READ}, window 5, cache (tuned on the first 20,000 tokens of valid, interpolation "
        "0.1279), dynamic (tuned on the first 20,000 tokens of valid, rule rms, epsilon 2e-05)"
    )
