"""The folder of an export: a model without pickle, either complete or absent.

``model.safetensors`` holds the weights, a tied one under one name; ``vocabulary.json`` the words in
the order of their ids; ``config.json`` what the model is built from, and the hashes of those two.
Next to them is a model card, ``README.md``.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from lmbench.data.tokenizer.choice import make_tokenizer, plain_tokenizer
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.files import read_json, reading, replacing_folder
from lmbench.model import LanguageModel
from lmbench.run.directory import is_run
from lmbench.run.targets import MODEL_PLACES, require_known_targets
from lmbench.saved.checkpoint import FORMAT, SavedModel, read_run_model, require_format

CONFIG, WEIGHTS, WORDS = "config.json", "model.safetensors", "vocabulary.json"
CARD = "README.md"
_HINT = " Copy the whole folder again."


def is_export(folder: Path) -> bool:
    """Whether the folder looks like an export; read_export checks it in full."""
    try:
        return {"format_version", "lmbench_version"} <= read_json(folder / CONFIG).keys()
    except UserError:
        return False


def write_export(
    output: Path,
    saved: SavedModel,
    model: LanguageModel,
    *,
    corpus_name: str,
    card: str,
    overwrite: bool = False,
) -> None:
    """Writes an export, or nothing.

    Args:
        output: The folder to create.
        saved: What the model was built from.
        model: The model.
        corpus_name: Name of the corpus that it was trained on.
        card: The model card, as Markdown.
        overwrite: Whether to replace an existing export.

    Raises:
        UserError: There is something there already.
        OSError: The folder cannot be written.
    """
    require_free(output, overwrite=overwrite)
    contents = _model_files(saved, model, corpus_name)
    # JSON can express halves of surrogate pairs, which UTF-8 cannot.
    contents[CARD] = card.encode("utf-8", "backslashreplace")
    with replacing_folder(output.resolve()) as folder:
        for name, data in contents.items():
            (folder / name).write_bytes(data)


def require_free(output: Path, *, overwrite: bool) -> None:
    """Refuses to overwrite anything, except an export that is to be replaced.

    Raises:
        UserError: There is something at ``output``.
    """
    if not os.path.lexists(output):
        return
    is_folder = output.is_dir() and not output.is_symlink()
    present = {path.name for path in output.iterdir()} if is_folder else {str(output)}
    is_ours = present <= {CONFIG, WEIGHTS, WORDS, CARD} and is_export(output)
    if present and not (is_ours and overwrite):
        what_to_do = "Replace it with --overwrite" if is_ours else "Choose another --output"
        raise UserError(f"{output} exists already and would be lost. {what_to_do}.")


def _model_files(saved: SavedModel, model: LanguageModel, corpus_name: str) -> dict[str, bytes]:
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if not any(weight is other for other in weights.values()):
            weights[name] = weight
    contiguous = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    contents = {
        WEIGHTS: safetensors.torch.save(contiguous, {"format": "pt"}),
        WORDS: json.dumps(saved.vocabulary.words, ensure_ascii=False, indent=0).encode(),
    }
    config = {
        "format_version": FORMAT,
        "lmbench_version": version("lmbench"),
        "model": saved.model_config,
        "corpus": {
            "name": corpus_name,
            "sha256": saved.corpus_sha256,
            "tokenizer": plain_tokenizer(saved.vocabulary.tokenizer),
        },
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    contents[CONFIG] = json.dumps(config, indent=2, allow_nan=False).encode() + b"\n"
    return contents


def read_saved(folder: Path) -> SavedModel:
    """The model of a run's directory or of an export, not built yet.

    Raises:
        UserError: The folder is neither, or a file in it is damaged or cannot be read.
    """
    if is_run(folder):
        return read_run_model(folder)
    if is_export(folder):
        return read_export(folder)
    raise UserError(
        f"{folder} is neither the directory of a run, which has a config.yaml, nor an export of "
        "lmbench-export, which has a config.json."
    )


def read_export(folder: Path) -> SavedModel:
    """The model of an export, not built yet.

    Raises:
        UserError: A file is missing, damaged, of another export or another version.
    """
    path = folder / CONFIG
    with reading(path, _HINT):
        config = read_json(path)
        require_format(path, config.get("format_version"))
        require_known_targets(config, MODEL_PLACES, str(path))
        weights = safetensors.torch.load(_read(folder / WEIGHTS, config))
        words = json.loads(_read(folder / WORDS, config))
        model_config, corpus = dict(config["model"]), config["corpus"]
        vocabulary = Vocabulary(tuple(words), make_tokenizer(corpus["tokenizer"], str(path)))
        weights_path, sha256 = folder / WEIGHTS, corpus["sha256"]
        return SavedModel(path, model_config, weights_path, weights, vocabulary, sha256)


def _read(path: Path, config: Mapping[str, Any]) -> bytes:
    """The content of a file, which must be the one that the export's config was written with."""
    sha256 = config["sha256"][path.name]
    with reading(path, _HINT):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"its hash is not the one in {CONFIG}")
        return content
