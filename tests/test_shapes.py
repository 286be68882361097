"""The shape checks of signatures that conftest.py turns on."""

import sys
from importlib.machinery import SourceFileLoader

import pytest
import torch
from jaxtyping import TypeCheckError

from lmbench.model import Embedding


def test_a_wrong_shape_or_dtype_is_refused() -> None:
    with pytest.raises(TypeCheckError):
        Embedding(3, 2)(torch.zeros(2))


def test_every_module_is_checked() -> None:
    """One that is imported before the hook is installed is not, without a warning."""
    checked = tuple(f"lmbench.{part}" for part in ("data", "evaluation", "loss", "model", "optim"))
    modules = {name: module for name, module in sys.modules.items() if name.startswith(checked)}
    unchecked = [n for n, one in modules.items() if type(one.__loader__) is SourceFileLoader]
    assert len(modules) > 20
    assert unchecked == []
