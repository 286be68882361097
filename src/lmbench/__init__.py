"""Train, compare and believe recurrent language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from lmbench.saved.loading import Loaded


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Loaded:
    """The model of a run or an export, with the weights to evaluate, and its vocabulary.

    Plain PyTorch, without Lightning and Hydra. Nothing that the folder holds is run.

    Args:
        path: The directory of a run, or a folder that lmbench-export wrote.
        device: Where the model goes; "auto" is a CUDA device if there is one.

    Returns:
        ``(model, vocabulary)``; the model is in evaluation mode.

    Raises:
        lmbench.errors.UserError: The folder holds no model, or one that is damaged; or there is no
            such device.
    """
    from lmbench.saved import loading  # torch is slow to import

    return loading.load(path, device=device)
