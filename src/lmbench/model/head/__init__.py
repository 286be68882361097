"""Heads: from a core's outputs to a distribution over words."""

from lmbench.model.head.softmax import Softmax

__all__ = ["Softmax"]
