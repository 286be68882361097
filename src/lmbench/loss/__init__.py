"""Losses as pure functions."""

from lmbench.loss.activation_penalty import (
    activation_regularization,
    temporal_activation_regularization,
)
from lmbench.loss.liger_cross_entropy import liger_cross_entropy
from lmbench.loss.linear_cross_entropy import linear_cross_entropy

__all__ = [
    "activation_regularization",
    "liger_cross_entropy",
    "linear_cross_entropy",
    "temporal_activation_regularization",
]
