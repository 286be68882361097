"""The comparison of runs must find every difference."""

import pytest
import torch
from chaos import unequal


def content() -> dict:
    return {
        "weights": {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3])},
        "rows": [1, (2.0, "three")],
        "train": {"seconds": 1.0, "tokens_per_second": 2.0, "steps": 3},
        "environment": {"torch": "2"},
    }


def test_times_and_the_environment_may_differ():
    other = content()
    other["train"]["seconds"] = other["train"]["tokens_per_second"] = 9.0
    other["environment"] = None
    assert unequal(content(), other) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda c: c["weights"]["w"].add_(torch.tensor([0.0, 2**-22])), ".weights.w"),
        (lambda c: c["weights"].update(b=torch.tensor([3.0])), ".weights.b"),
        (lambda c: c["weights"].update(b=[3]), ".weights.b"),
        (lambda c: c["weights"].pop("b"), ".weights"),
        (lambda c: c["rows"].append(4), ".rows"),
        (lambda c: c["rows"].__setitem__(1, (2.0, "four")), ".rows[1][1]"),
        (lambda c: c["train"].update(steps=4), ".train.steps"),
    ],
)
def test_a_difference_is_named(change, found):
    other = content()
    change(other)
    assert unequal(content(), other) == [found]
