"""Softmax over cosines. Shape letters: N tokens (any number of dimensions), H hidden, V words."""

import torch
from torch import nn
from torch.nn import functional

from lmbench.model.head import Head


class CosineSoftmax(Head):
    """Logits are a learned scale times the cosine of output and word vector.

    So the length of a word's vector, which grows with its frequency, does not count; a bias does
    (compare Luo et al. 2018, "Cosine normalization", arXiv 1702.05870).
    """

    def __init__(self, input_size, vocabulary_size, *, scale=10.0):
        super().__init__()
        self.input_size, self.vocabulary_size = input_size, vocabulary_size
        self.weight = nn.Parameter(torch.empty(vocabulary_size, input_size).uniform_(-0.1, 0.1))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def log_probs(self, output):  # (*N, H) → (*N, V)
        with torch.autocast(output.device.type, enabled=False):
            output = output.to(torch.promote_types(self.weight.dtype, torch.float32))
            directions = functional.normalize(self.weight.to(output.dtype), dim=-1)
            cosines = functional.linear(functional.normalize(output, dim=-1), directions)
            return (self.scale * cosines + self.bias).log_softmax(-1)

    def loss(self, output, targets, *, reduction="mean"):  # (*N, H), (*N,) → () or (*N,)
        log_probs = self.log_probs(output)
        losses = functional.nll_loss(
            log_probs.flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="none"
        )
        if reduction == "none":
            return losses.view(targets.shape)
        scored = (targets != -100).sum().clamp(min=1)
        return losses.sum() / scored if reduction == "mean" else losses.sum()
