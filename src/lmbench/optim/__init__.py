"""What torch.optim lacks."""

from lmbench.optim.asgd import ASGD, swap_averages

__all__ = ["ASGD", "swap_averages"]
