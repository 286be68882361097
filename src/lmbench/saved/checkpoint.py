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

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (
    *FLOATS,
    *(torch.complex64, torch.complex128, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)
"""Types of weights and buffers that are read: PyTorch can compute with all of them."""

DATA = "LanguageModelDataModule"
"""Where Lightning keeps what the data gave: its name for the class of that name."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Raises:
        UserError: The file cannot be read, is damaged, or holds more than plain values and tensors,
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
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged: {reason}.{_offer(path)}") from error
    except Exception as error:  # torch raises whatever a damaged pickle makes it do
        reason = f"its parts make no whole ({type(error).__name__})"
        raise UserError(f"{path} is damaged: {reason}.{_offer(path)}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is no checkpoint of lmbench: it has no state_dict.{_offer(path)}")
    require_numbers(path, checkpoint["state_dict"], _offer(path))
    return checkpoint


def require_numbers(path: Path, weights: Mapping[Any, Any], hint: str = "") -> None:
    """Refuses weights that are not plain tensors of finite numbers.

    Args:
        path: The file that they were read from.
        weights: The weights by their names.
        hint: What to do, after a space.

    Raises:
        UserError: Naming the file and the weight.
    """
    for name, weight in weights.items():
        problem = _problem(weight) if isinstance(name, str) else "has no text for a name"
        if problem:
            raise UserError(f"{path}: the weight {name} {problem}.{hint}")


def _problem(weight: object) -> str | None:
    if not isinstance(weight, Tensor):
        return "is no tensor"
    if weight.dtype not in DTYPES:
        return f"is of {weight.dtype}, which lmbench does not read"
    if weight.layout != torch.strided or weight.is_nested or weight.device.type != "cpu":
        return "is no plain tensor"
    # A view can be larger than what it views, and take memory that the file does not have.
    if weight.nbytes > weight.untyped_storage().nbytes():
        return f"says it has the shape {tuple(weight.shape)}, and has fewer numbers"
    try:
        return None if weight.isfinite().all() else "is not finite"
    except RuntimeError:  # of more axes, or longer ones, than PyTorch computes with
        return f"has a shape that PyTorch cannot compute with: {tuple(weight.shape)}"


def corpus_of(path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its corpus: ``sha256`` and ``words``.

    Raises:
        UserError: The checkpoint does not name its corpus.
    """
    of_corpus = checkpoint.get(DATA)
    if not isinstance(of_corpus, dict) or not {"sha256", "words"} <= of_corpus.keys():
        raise UserError(f"{path} is no checkpoint of lmbench: it does not name its corpus.")
    return of_corpus


def load_weights(path: Path, module: nn.Module, corpus: Corpus) -> dict[str, Any]:
    """Gives the module the weights to evaluate of a checkpoint, whose content is returned.

    Raises:
        UserError: There is no such checkpoint; it is damaged, of another corpus or another model.
    """
    checkpoint = read_checkpoint(path)
    corpus.require_sha256(corpus_of(path, checkpoint)["sha256"])
    for name, own in module.state_dict().items():  # PyTorch would convert whatever it finds
        found = checkpoint["state_dict"].get(name, own).dtype
        if found != own.dtype and not {found, own.dtype} <= {*FLOATS}:
            raise UserError(
                f"The weights in {path} do not fit the model: {name} is of {found} instead of "
                f"{own.dtype}."
            )
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
        UserError: The checkpoint lacks what a run needs to go on.
    """
    needed = ("global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers", "processes")
    for key in (*needed, "csv"):
        if key not in checkpoint:
            raise UserError(f"{path} cannot be gone on from: it has no {key}.{_offer(path)}")
    return checkpoint["global_step"]


def _offer(path: Path) -> str:
    previous = path.with_name("previous.ckpt")
    if path.name != "last.ckpt" or not previous.is_file():  # it is none before the best one
        return ""
    return f" The checkpoint before it is {previous}: rename that to {path.name} to go on from it."
