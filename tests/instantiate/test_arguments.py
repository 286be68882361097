"""Finding and calling what a config node names; errors name the node's key."""

from pathlib import Path
from typing import Any, get_type_hints

import lightning as L
import pytest
import torch

from lmbench.errors import UserError
from lmbench.instantiate.arguments import call, convert, factory
from lmbench.run.targets import takes

FRACTION = {"_target_": "fractions.Fraction", "numerator": 3}


def test_a_node_makes_its_object():
    make = factory(FRACTION, "a.b")
    assert float(make(denominator=4)) == 0.75
    assert takes(FRACTION, "denominator")
    assert not takes(FRACTION, "total_steps")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("gru", r"^a\.b=gru names no class to build.*a/b=NAME"),
        (None, r"^a\.b=None names no class"),
        ({"numerator": 3}, r"names no class.*, or leave it out with '~a\.b'\.$"),
        ({"_target_": "fractions.Part"}, r"^a\.b\._target_: fractions\.Part cannot be imported: "),
        ({"_target_": "no_such.Module"}, r"no_such\.Module cannot be imported: No module named"),
        *(
            ({"_target_": target}, r"^a\.b\._target_: .* cannot be imported: ")
            for target in ("Fraction", "", "..Fraction", None, 3, ["fractions.Fraction"])
        ),
        (FRACTION | {"nominator": 3}, r"^a\.b\.nominator: .* no such argument.*~a\.b\.nominator"),
        (
            FRACTION | {"a": 3, "b": 4},
            r"^a\.b\.a, a\.b\.b: .* argument.*with '~a\.b\.a' '~a\.b\.b'\.$",
        ),
    ],
)
def test_what_names_nothing_to_call(node: Any, message: str):
    with pytest.raises(UserError, match=message):
        factory(node, "a.b")


def test_missing_and_surplus_arguments_are_named():
    for own, message in (
        ({"size": 3, "other": 4}, "unexpected .* 'size'"),
        ({}, "missing .* 'other'"),
    ):
        with pytest.raises(UserError, match=rf"^a\.b: .*{message}"):
            call(lambda numerator, other: None, "a.b", {"numerator": 3}, **own)


def test_what_lmbench_sets_itself_is_refused():
    with pytest.raises(UserError, match=r"^a\.b\.numerator is set by lmbench itself"):
        factory(FRACTION, "a.b")(numerator=4)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("numerator is odd"), r"^a\.b: numerator is odd$"),
        (RuntimeError("numerator is odd"), r"^a\.b: RuntimeError: numerator is odd$"),
        (ZeroDivisionError("float division"), r"^a\.b: ZeroDivisionError: float division$"),
    ],
)
def test_what_a_target_raises_is_reported(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
):
    def refuse(numerator: int) -> None:
        raise error

    monkeypatch.setattr("fractions.Fraction", refuse)
    with pytest.raises(UserError, match=message):
        factory(FRACTION, "a.b")()


def test_a_target_that_does_not_fit_into_memory_is_named():
    linear = {"_target_": "torch.nn.Linear", "in_features": 2**40, "out_features": 2**20}
    with pytest.raises(UserError, match=r"^Out of memory: lower the sizes of a\.b\. \(.*"):
        factory(linear, "a.b")()

    def fill() -> None:
        raise MemoryError  # Python's own says nothing more

    with pytest.raises(UserError, match=r"^Out of memory: lower the sizes of a\.b\. \(\)$"):
        call(fill, "a.b", {})


class OfAUser:
    def __init__(self, anything: Any = None, folder: Path = Path()) -> None:
        self.anything, self.folder = anything, folder


@pytest.mark.parametrize("value", [3, True, None, "text", [1, "a"], {"a": 1}])
def test_any_value_fits_any(value: Any):
    assert call(OfAUser, "a", {"anything": value}).anything == value


PRECISION = get_type_hints(L.Trainer.__init__)["precision"]


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, float, 3.0),
        (float("inf"), float, float("inf")),
        ("plots", Path, Path("plots")),
        ("plots", str | Path, "plots"),
        ([0.9, 1], tuple[float, float], (0.9, 1.0)),
        ([0.9] * 5, tuple[float, ...], (0.9,) * 5),
        (None, int | None, None),
        (0.1, float | torch.Tensor, 0.1),
        (32, PRECISION, 32),
        ("bf16-true", PRECISION, "bf16-true"),
    ],
)
def test_plain_values_become_what_the_type_says(value: Any, hint: Any, expected: Any):
    converted = convert("key", value, hint)
    assert (converted, type(converted)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (3, Path),
        (True, int),
        (True, float),
        ("3", int),
        (0.5, int),
        ([0.9], tuple[float, float]),
        ([0.9, 0.99, 0.5], tuple[float, float]),
        ([0.9, "0.99"], tuple[float, float]),
        ("32-tru", PRECISION),
        ("", get_type_hints(L.Trainer.__init__)["max_epochs"]),
        ("0.1", float | torch.Tensor),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(value: Any, hint: Any):
    with pytest.raises(UserError, match=r"^optimizer\.key=.* has the wrong type"):
        convert("optimizer.key", value, hint)


def test_a_text_that_was_read_as_a_number_is_to_be_quoted():
    with pytest.raises(UserError, match=r"data\.path=1984 .* In quotes it is text: \"data\.path='"):
        convert("data.path", 1984, str | Path)
