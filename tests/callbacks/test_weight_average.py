"""The average's arguments; what it computes is tested with the checkpoints and the callbacks."""

import math

import pytest

from lmbench.callbacks.weight_average import WeightAverage


@pytest.mark.parametrize("eta", [-1.0, math.inf, math.nan])
def test_an_eta_without_an_average_is_refused(eta: float):
    with pytest.raises(ValueError, match=r"^eta "):
        WeightAverage(eta)
