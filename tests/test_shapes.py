"""The shape checks of signatures that conftest.py turns on."""

import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader

import pytest
import torch
from jaxtyping import TypeCheckError

from lmbench.model import LSTM, Embedding, Softmax


@pytest.mark.parametrize(
    "call",
    [
        lambda: Embedding(3, 2)(torch.zeros(2)),
        lambda: LSTM(4, 4)(torch.zeros(5, 4)),
        lambda: Softmax(4, 9).loss(torch.zeros(5, 2, 4), torch.zeros(5, 3, dtype=torch.int64)),
    ],
    ids=["dtype", "dimensions", "two that disagree"],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        call()


def test_every_module_is_checked() -> None:
    """One that is imported before the hook is installed is not, without a warning."""
    checked = tuple(f"lmbench.{part}" for part in ("data", "evaluation", "loss", "model", "optim"))
    modules = {name: module for name, module in sys.modules.items() if name.startswith(checked)}
    unchecked = [n for n, one in modules.items() if type(one.__loader__) is SourceFileLoader]
    assert len(modules) > 20
    assert unchecked == []
