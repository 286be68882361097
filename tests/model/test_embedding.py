import pytest
import torch

from lmbench.model import Embedding


def test_initial_values_fill_the_range() -> None:
    torch.manual_seed(0)
    weight = Embedding(500, 40).weight
    assert weight.shape == (500, 40)
    assert 0.0999 < weight.max() <= 0.1
    assert -0.1 <= weight.min() < -0.0999
    # variance of U(−a, a) is a²/3
    assert weight.var().item() == pytest.approx(0.01 / 3, rel=0.03)


def test_wrong_dropout() -> None:
    with pytest.raises(ValueError, match="dropout"):
        Embedding(50, 4, dropout=1.0)
