"""Finding and calling what a config node names; errors name the node's key."""

from pathlib import Path
from typing import Any, get_type_hints

import lightning as L
import pytest

from lmbench.errors import UserError
from lmbench.instantiate.arguments import call, factory, require_type
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
        ({"numerator": 3}, r"names no class.* ~a\.b\.numerator\.$"),
        ({"_target_": "fractions.Part"}, r"^a\.b\._target_: fractions\.Part cannot be imported: "),
        ({"_target_": "no_such.Module"}, r"no_such\.Module cannot be imported: No module named"),
        *(
            ({"_target_": target}, r"^a\.b\._target_: .* cannot be imported: ")
            for target in ("Fraction", "", "..Fraction", None, 3, ["fractions.Fraction"])
        ),
        (FRACTION | {"nominator": 3}, r"^a\.b\.nominator: .* no such argument.*~a\.b\.nominator"),
        (
            FRACTION | {"a": 3, "b": 4},
            r"^a\.b\.a, a\.b\.b: .* arguments.*with ~a\.b\.a ~a\.b\.b\.$",
        ),
    ],
)
def test_what_names_nothing_to_call(node: Any, message: str):
    with pytest.raises(UserError, match=message):
        factory(node, "a.b")


@pytest.mark.parametrize("kind", ["callbacks", "logger"])
def test_a_callback_that_an_option_has_not_brought_is_left_out_whole(kind: str):
    with pytest.raises(UserError, match=rf"Leave it out with ~{kind}\.b, or choose .* {kind}= "):
        factory({"eta": 8}, f"{kind}.b")


def test_what_a_target_must_take_and_does_not_is_told_apart_from_a_users_value():
    with pytest.raises(UserError, match=r"^a\.b: lmbench passes Fraction an argument size, which"):
        factory(FRACTION, "a.b")(size=3)


def test_what_lmbench_sets_itself_is_refused():
    with pytest.raises(UserError, match=r"^a\.b\.numerator is set by lmbench itself"):
        factory(FRACTION, "a.b")(numerator=4)


@pytest.mark.parametrize(
    "error",
    [
        *(IndexError, ImportError, TypeError, ValueError, RuntimeError),
        *(OverflowError, MemoryError),  # from absurdly large numbers
    ],
)
def test_what_a_target_raises_is_reported(error: type[Exception], monkeypatch: pytest.MonkeyPatch):
    def refuse(numerator: int) -> None:
        raise error("numerator is odd")

    monkeypatch.setattr("fractions.Fraction", refuse)
    with pytest.raises(UserError, match=r"^a\.b\.numerator is odd$"):
        factory(FRACTION, "a.b")()


def test_a_target_that_does_not_fit_into_memory_is_named():
    linear = {"_target_": "torch.nn.Linear", "in_features": 2**40, "out_features": 2**20}
    with pytest.raises(UserError, match=r"^Out of memory: lower the sizes of a\.b\. \(.*"):
        factory(linear, "a.b")()

    def fill() -> None:
        raise MemoryError  # Python's own says nothing more

    with pytest.raises(UserError, match=r"^Out of memory: lower the sizes of a\.b\. \(\)$"):
        call(fill, "a.b")


class OfAUser:
    def __init__(self, anything: Any = None, folder: Path = Path()) -> None:
        self.anything, self.folder = anything, folder


@pytest.mark.parametrize("value", [3, True, None, "text", [1, "a"], {"a": 1}])
def test_any_value_fits_any(value: Any):
    assert call(OfAUser, "a", anything=value).anything == value


def test_a_path_can_be_given_as_text():
    assert call(OfAUser, "a", folder="plots").folder == Path("plots")
    with pytest.raises(UserError, match=r"a\.folder=3 has the wrong type: int instead of Path"):
        call(OfAUser, "a", folder=3)


@pytest.mark.parametrize("betas", [[0.9], [0.9, 0.99, 0.5], [0.9, "0.99"]])
def test_a_tuple_has_its_length_and_types(betas: list[Any]):
    hint = tuple[float, float]
    require_type("optimizer.betas", [0.9, 1], hint)
    require_type("a", [0.9] * 5, tuple[float, ...])
    with pytest.raises(UserError, match=r"optimizer\.betas=.* has the wrong type"):
        require_type("optimizer.betas", betas, hint)


def test_a_text_that_was_read_as_a_number_is_to_be_quoted():
    with pytest.raises(UserError, match=r"data\.path=1984 .* In quotes it is text: \"data\.path='"):
        require_type("data.path", 1984, str | Path)
    with pytest.raises(UserError, match=r"int\.$"):
        require_type("seed", "x", int)
    with pytest.raises(UserError, match=r"int instead of str or dict\.$"):  # not just any text
        require_type("trainer.max_time", 3600, str | dict)
    with pytest.raises(UserError, match=r"str instead of int or null\.$"):
        require_type("trainer.max_epochs", "", get_type_hints(L.Trainer.__init__)["max_epochs"])
