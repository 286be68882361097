"""What a checkpoint holds, and the model in it, read without running any code."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmbench.data.tokenizer.choice import make_tokenizer
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.files import reading
from lmbench.run.config import read_run_config
from lmbench.run.directory import as_override
from lmbench.run.targets import MODEL_PLACES

DATA = "LanguageModelDataModule"
"""Where Lightning keeps the state of the data module: the name of its class."""

FORMAT, FORMAT_KEY = 2, "lmbench_format"
"""Version of the format of checkpoints and exports: raise it when what they hold changes. Format 1,
with the tokenizer's name in place of its node, is read as well."""


@dataclass(frozen=True)
class SavedModel:
    """A model as stored in a folder, before it is built.

    Attributes:
        config_path: The file that describes the model.
        model_config: Its node ``model``, as :func:`lmbench.instantiate.model.build_model` takes it.
        weights_path: The file of the weights.
        weights: Weights to evaluate, by the names of ``LanguageModel.state_dict``; one of a tied
            weight's names is enough.
        vocabulary: The words.
        corpus_sha256: Hash of the corpus that the model was trained on.
    """

    config_path: Path
    model_config: dict[str, Any]
    weights_path: Path
    weights: dict[str, Tensor]
    vocabulary: Vocabulary
    corpus_sha256: str


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU.

    Raises:
        UserError: The file cannot be read, is damaged or of another format, or holds more than
            plain values and tensors.
    """
    previous = path.with_name("previous.ckpt")
    offer = ""
    if path.name == "last.ckpt" and previous.is_file():
        offer = f" The one before it is {previous}: rename that to {path.name} to continue from it."
    with reading(path, offer):
        with zipfile.ZipFile(path) as archive:
            # For an entry marked as a folder, torch would return uninitialized memory.
            if any(entry.external_attr & 0x10 for entry in archive.infolist()):
                raise zipfile.BadZipFile("a tensor is marked as a folder")
            if damaged := archive.testzip():  # torch does not verify checksums
                raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
        try:
            checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} holds more than tensors and plain values, and reading it could run code "
                "that someone put there. It is refused."
            ) from error
    require_format(path, checkpoint.get(FORMAT_KEY) if isinstance(checkpoint, dict) else None)
    return checkpoint


def require_format(path: Path, version: object) -> None:
    """Refuses a file of a format that this version of lmbench does not read.

    Raises:
        UserError: Naming the format.
    """
    if version not in (1, FORMAT):
        raise UserError(
            f"{path} is of format {version}, but this version of lmbench reads format {FORMAT}. "
            "Use the version that wrote it."
        )


def require_plain(path: Path) -> None:
    """Refuses a checkpoint that :func:`read_checkpoint` would not read, since it holds more.

    Raises:
        UserError: Naming what it holds.
    """
    try:
        torch.load(path, weights_only=True, map_location="meta")
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        kind = match[1] if match else "value"
        raise UserError(
            f"A callback, scheduler or core has a {kind} in its state, but checkpoints hold only "
            "tensors and plain values. Convert it in its state_dict."
        ) from None


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads weights into a module; of a tied weight, one of its names is enough.

    Args:
        module: The module.
        weights: Weights by the names of ``module.state_dict``.
        path: Where they come from, for errors.

    Raises:
        UserError: They are those of another model, or differ where this one ties them.
    """
    try:  # not strict: a tied weight has two names, and may be saved under one
        _, unexpected = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # a title, and a line for each problem
        lines = str(error).splitlines()[1:] or [str(error)]
        problems = [line.strip().rstrip(".") for line in lines]
    else:
        names_of: dict[int, list[str]] = {}
        for name, parameter in module.state_dict(keep_vars=True).items():
            names_of.setdefault(id(parameter), []).append(name)
        problems = []
        for names in names_of.values():
            given = [weights[name] for name in names if name in weights]
            if not given:
                problems.append(f"{names[0]} is missing")
            elif not all(torch.equal(given[0], other) for other in given[1:]):
                problems.append(f"{' and '.join(names)} differ, and model.tied=true makes them one")
        problems += [f"the model has no {name}" for name in unexpected]
        if not problems:
            return
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    raise UserError(
        f"The weights in {path} do not fit the model: {problems[0]}{more}. Keep the model's "
        "settings as they are in that run."
    )


def read_run_model(run_dir: Path) -> SavedModel:
    """The model of a run's best checkpoint.

    Raises:
        UserError: The folder holds no run, or a file in it is damaged.
    """
    model_config = read_run_config(run_dir, MODEL_PLACES)["model"]
    path = run_dir / "checkpoints/best.ckpt"
    if not path.exists():
        raise UserError(
            f"{run_dir} has no best.ckpt yet: it gets one at its first validation. To continue it: "
            f"lmbench-train {as_override('resume', run_dir)}"
        )
    with reading(path, " Copy it again."):
        checkpoint = read_checkpoint(path)
        corpus = checkpoint[DATA]
        weights = {
            name.removeprefix("model."): tensor  # its name in the LightningModule
            for name, tensor in checkpoint["state_dict"].items()
        }
        tokenizer = make_tokenizer(corpus["tokenizer"], str(path))
        vocabulary = Vocabulary(tuple(corpus["words"]), tokenizer)
        config_path, sha256 = run_dir / "config.yaml", corpus["sha256"]
        return SavedModel(config_path, model_config, path, weights, vocabulary, sha256)
