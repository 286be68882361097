"""Independently recurrent network. Shape letters: T time steps, B columns, H hidden."""

import torch
from torch import nn

from lmbench.model.core.stack import Stack


class IndRNN(Stack):
    """Features that each read only their own last value (Li et al. 2018, arXiv 1803.04831)."""

    def make_layer(self, input_size, output_size):
        return IndRNNLayer(input_size, output_size)


class IndRNNLayer(nn.Module):
    """Its state is ``(h,)``, of shape ``(B, H)``."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input = nn.Linear(input_size, hidden_size)
        self.recurrent = nn.Parameter(torch.rand(hidden_size))

    def forward(self, input, state, weight_dropout):  # (T, B, input_size) → (T, B, H)
        steps, weight = self.input(input), weight_dropout(self.recurrent)
        hidden = torch.zeros_like(steps[0]) if state is None else state[0].to(steps.dtype)
        outputs = [hidden := torch.tanh(step + weight * hidden) for step in steps]
        return torch.stack(outputs), (hidden,)
