"""Heads: from a core's outputs to a distribution over words."""

from lmbench.model.head.adaptive_softmax import AdaptiveSoftmax
from lmbench.model.head.base import Head
from lmbench.model.head.mixture_of_softmaxes import MixtureOfSoftmaxes
from lmbench.model.head.softmax import Softmax

__all__ = ["AdaptiveSoftmax", "Head", "MixtureOfSoftmaxes", "Softmax"]
