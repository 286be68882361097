"""The model in a run's directory or an export, as plain PyTorch, without Lightning and Hydra.

The folder may come from a stranger: nothing that it holds is run.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf

from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.machine import device_of
from lmbench.model import LanguageModel
from lmbench.run.config import read_run_config
from lmbench.saved.checkpoint import corpus_of, read_checkpoint
from lmbench.saved.export import CONFIG, read_export
from lmbench.saved.model import SavedModel, build, vocabulary_of


class Loaded(NamedTuple):
    """A model and its words."""

    model: LanguageModel
    """The model, in evaluation mode."""
    vocabulary: Vocabulary


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Loaded:
    """See :func:`lmbench.load`."""
    found = device_of(device)
    saved = read(Path(path))
    try:
        return Loaded(build(saved).to(found), saved.vocabulary)
    except (RuntimeError, TypeError) as error:  # no room for it, or no numbers of its precision
        reason = str(error).partition("\n")[0]
        raise UserError(f"device={found} cannot hold the model: {reason}") from error


def read(folder: Path) -> SavedModel:
    """The model of a run's directory or of an export, not built yet.

    Raises:
        UserError: The folder is neither, or what is in it is damaged or cannot be read.
    """
    try:
        is_run, is_export = ((folder / name).is_file() for name in ("config.yaml", CONFIG))
    except OSError as error:  # of a folder that may not be read, or a name that is too long
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
    if is_run:
        return read_run(folder)
    if is_export:
        return read_export(folder)
    raise UserError(
        f"{folder} is neither the directory of a run, which has a config.yaml, nor an export of "
        "lmbench-export, which has a config.json."
    )


def read_run(run_dir: Path) -> SavedModel:
    """The model of a run's best checkpoint, not built yet.

    Raises:
        UserError: The folder holds no run, or what is in it is damaged.
    """
    model_config = run_values(run_dir)["model"]
    head = model_config.get("head")
    if isinstance(head, dict) and head.get("_target_") == "lmbench.model.head.Softmax":
        head.pop("kernel", None)  # of the loss in training; this machine may not have it
    path = run_dir / "checkpoints/best.ckpt"
    checkpoint = read_checkpoint(path)
    of_corpus = corpus_of(path, checkpoint)
    weights = {
        name.removeprefix("model."): tensor  # its name in the LightningModule
        for name, tensor in checkpoint["state_dict"].items()
    }
    vocabulary = vocabulary_of(of_corpus["words"], path)
    sha256 = str(of_corpus["sha256"])
    config_path = run_dir / "config.yaml"
    return SavedModel(config_path, model_config, path, weights, vocabulary, sha256)


def run_values(run_dir: Path) -> dict[str, Any]:
    """A run's config as plain values; see :func:`lmbench.run.config.read_run_config`."""
    values: Any = OmegaConf.to_container(read_run_config(run_dir))
    return values
