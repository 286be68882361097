"""How Lightning writes and reads checkpoint files: whole, or not at all."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lmbench.errors import UserError
from lmbench.files import flush_to_disk
from lmbench.saved.checkpoint import read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name first, so that none is ever half-written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        """Writes the file; it is on disk when this returns.

        Raises:
            UserError: The disk is full or the folder cannot be written; what was there stays.
        """
        path = Path(path)
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            flush_to_disk(path.parent)
        except (OSError, RuntimeError) as error:
            # torch's writer raises an error of its own while it handles the system's.
            cause = error if isinstance(error, OSError) else error.__context__
            reason = getattr(cause, "strerror", None) or str(error).splitlines()[0]
            raise UserError(
                f"The checkpoint {path} cannot be written: {reason}. Make room, or see that the "
                "folder can be written. The checkpoints from before are whole."
            ) from error

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict[str, Any]:
        """See :func:`lmbench.saved.checkpoint.read_checkpoint`."""
        return read_checkpoint(Path(path))
