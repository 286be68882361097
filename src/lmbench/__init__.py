"""Train recurrent language models, and compare them by results that can be checked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lmbench.loaded import Loaded


def load(
    path: str | Path, *, device: str | torch.device = "cpu", allow: Iterable[str] = ()
) -> Loaded:
    """The model of a run or an export, with the weights to evaluate, and its vocabulary.

    ``model, vocabulary = lmbench.load(DIR)`` unpacks both; :class:`lmbench.loaded.Loaded` says
    what they can do together. The model is plain PyTorch, without Lightning or Hydra. No code in
    the folder is run.

    Args:
        path: The directory of a run, or a folder that lmbench-export wrote.
        device: Where the model goes; "auto" is a CUDA device if there is one.
        allow: Classes of your own that the model is made of, such as ``"my_package.MyCore"``; those
            of packages with an entry point ``lmbench.conf`` are allowed already.

    Raises:
        lmbench.errors.UserError: The folder holds no model, or one that is damaged; or there is no
            such device, or no room on it.
    """
    from lmbench.errors import UserError
    from lmbench.instantiate.model import build_saved  # torch is slow to import
    from lmbench.loaded import Loaded
    from lmbench.machine import device_of
    from lmbench.run.targets import allowing
    from lmbench.saved.export import read_saved

    chosen = device_of(device)
    with allowing(allow):
        saved = read_saved(Path(path))
    try:
        return Loaded(build_saved(saved).to(chosen), saved.vocabulary)
    except (RuntimeError, TypeError) as error:  # no room for it, or not in its precision
        reason = str(error).partition("\n")[0]
        raise UserError(f"device={chosen} cannot hold the model: {reason}") from error
