"""Losses as pure functions."""

from lmbench.loss.activation_penalty import (
    activation_regularization,
    temporal_activation_regularization,
)
from lmbench.loss.linear_cross_entropy import linear_cross_entropy

__all__ = [
    "activation_regularization",
    "linear_cross_entropy",
    "temporal_activation_regularization",
]
