"""Checkpoint files: whole or not there, read without running code."""

import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError
from lmbench.files import flush_to_disk
from lmbench.module import LanguageModelModule


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name first, so that none is ever half-written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        """Writes the file; it is on disk when this returns.

        Raises:
            UserError: the disk is full or the folder cannot be written; what was there stays.
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
        """See :func:`read_checkpoint`."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Raises:
        UserError: the file cannot be read, is damaged, or holds more than plain values and tensors,
            or weights that are not finite.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not look at the check sums
            # Where torch finds a folder in a tensor's place, it leaves the memory as it was.
            folders = [info.filename for info in archive.infolist() if info.external_attr & 0x10]
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} has another check sum")
        if folders:
            raise zipfile.BadZipFile(f"{folders[0]} says it is a folder")
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.{_offer(path)}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain values, and reading it could run code that "
            "someone put there. It is refused."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}.{_offer(path)}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is no checkpoint of lmbench: it has no state_dict.{_offer(path)}")
    for name, tensor in checkpoint["state_dict"].items():
        if not isinstance(tensor, torch.Tensor) or not tensor.isfinite().all():
            raise UserError(f"{path}: the weight {name} is not finite.{_offer(path)}")
    return checkpoint


def load_weights(
    path: Path, module: LanguageModelModule, datamodule: LanguageModelDataModule
) -> dict[str, Any]:
    """Gives the module the weights to evaluate of a checkpoint, whose content is returned.

    Raises:
        UserError: there is no such checkpoint; it is damaged, of another corpus or another model.
    """
    checkpoint = read_checkpoint(path)
    of_corpus = checkpoint.get(type(datamodule).__qualname__)
    if not isinstance(of_corpus, dict) or "sha256" not in of_corpus:
        raise UserError(f"{path} is no checkpoint of lmbench: it does not name its corpus.")
    datamodule.load_state_dict(of_corpus)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise UserError(
            f"The weights in {path} do not fit the model: {' '.join(str(error).split())}. Leave "
            "the sizes of the model as the run has them."
        ) from error
    return checkpoint


def step_to_go_on_from(path: Path, checkpoint: Mapping[str, Any]) -> int:
    """The number of steps after which a checkpoint was saved.

    Raises:
        UserError: it is none to go on from.
    """
    needed = ("global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers", "processes")
    for key in (*needed, "csv"):
        if key not in checkpoint:
            raise UserError(f"{path} cannot be gone on from: it has no {key}.{_offer(path)}")
    return checkpoint["global_step"]


def _offer(path: Path) -> str:
    previous = path.with_name("previous.ckpt")
    if path.name == "previous.ckpt" or not previous.is_file():
        return ""
    return f" The checkpoint before it is {previous}: rename that to {path.name} to go on from it."
