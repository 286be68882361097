"""What torch.optim lacks."""

from lmbench.optim.asgd import ASGD, swap_averages
from lmbench.optim.phased_lr import PhasedLR

__all__ = ["ASGD", "PhasedLR", "swap_averages"]
