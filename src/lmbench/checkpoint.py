"""What checkpoint files hold, read without running code, and without Lightning."""

import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmbench.data.corpus import Corpus
from lmbench.errors import UserError

DATA = "LanguageModelDataModule"
"""Where Lightning keeps what the data gave: its name for the class of that name."""


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
        if not isinstance(tensor, Tensor) or not tensor.isfinite().all():
            raise UserError(f"{path}: the weight {name} is not finite.{_offer(path)}")
    return checkpoint


def corpus_of(path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its corpus: ``sha256`` and ``words``.

    Raises:
        UserError: it says nothing.
    """
    of_corpus = checkpoint.get(DATA)
    if not isinstance(of_corpus, dict) or not {"sha256", "words"} <= of_corpus.keys():
        raise UserError(f"{path} is no checkpoint of lmbench: it does not name its corpus.")
    return of_corpus


def load_weights(path: Path, module: nn.Module, corpus: Corpus) -> dict[str, Any]:
    """Gives the module the weights to evaluate of a checkpoint, whose content is returned.

    Raises:
        UserError: there is no such checkpoint; it is damaged, of another corpus or another model.
    """
    checkpoint = read_checkpoint(path)
    corpus.require_sha256(corpus_of(path, checkpoint)["sha256"])
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
