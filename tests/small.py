"""Configs, corpora and models so small that a test can train them."""

import copy
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from own_parts.cosine_softmax import CosineSoftmax
from own_parts.ind_rnn import IndRNN
from torch import Tensor

from lmbench.model import LanguageModel
from lmbench.run.config import plain_config
from lmbench.run.targets import conf_dir
from lmbench.saved.checkpoint import DATA

SMALL = (
    "data=synthetic",
    "data.num_words=40",
    "data.num_train_tokens=2000",
    "data.num_valid_tokens=300",
    "data.num_test_tokens=200",
    "model.embedding_size=8",
    "model.core.hidden_size=12",
    "batching.batch_size=4",
    "batching.bptt=5",
    "evaluation.columns=2",
    "evaluation.burn_in=8",
    "trainer.accelerator=cpu",
)
"""Overrides of lmbench-train; group choices and other overrides come before or after them."""

SIZE = 8
"""Largest size of the cores and heads of :func:`makers`."""

NO_DROPOUT = dict.fromkeys(
    ("input_dropout", "hidden_dropout", "output_dropout", "weight_dropout"), 0.0
)
"""Arguments of a core."""


@cache
def composed(*overrides: str, name: str = "train") -> DictConfig:
    """A config as Hydra composes it; it is cached and must not be changed."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return compose(name, list(overrides))


def config_of(*overrides: str) -> dict[str, Any]:
    """A run's config of any size, as a plain dict."""
    return copy.deepcopy(_plain(*overrides))


def small_config(*overrides: str, model: str = "lstm", **changes: Any) -> dict[str, Any]:
    """A small run's config; ``changes`` sets keys, with two underscores for each dot."""
    config = config_of(f"model={model}", *SMALL, *overrides)
    for key, value in changes.items():
        set_value(config, key.replace("__", "."), value)
    return config


def set_value(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets a value in a plain config by its dotted key; makes the nodes that lead there."""
    *parents, name = key.split(".")
    for parent in parents:
        if not isinstance(config.get(parent), dict):
            config[parent] = {}
        config = config[parent]
    config[name] = value


def exact_log_probs(model: LanguageModel, ids: np.ndarray) -> Tensor:
    """Log-probabilities of a stream's tokens but the first, read at once in float64."""
    model = copy.deepcopy(model).double().eval()
    tokens = torch.from_numpy(ids).long()
    with torch.no_grad():
        log_probs = model.head.log_probs(model(tokens[:-1, None]).output)[:, 0]
    return log_probs.gather(1, tokens[1:, None])[:, 0]


@cache
def _plain(*overrides: str) -> dict[str, Any]:
    return plain_config(composed(*overrides))


def normal(*shape: int) -> torch.Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64)


def exact_in_bfloat16(weight: torch.Tensor, *shape: int) -> torch.Tensor:
    """Inputs whose products with the weight, which is set, lose nothing to bfloat16's rounding."""
    with torch.no_grad():
        weight.copy_(torch.randint(-1, 2, weight.shape))
    return torch.randint(-4, 5, shape) / 4


def change_words(run_dir: Path, place: int, word: str) -> None:
    """Puts another word into the vocabulary of a run's best checkpoint."""
    path = run_dir / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint[DATA]["words"][place] = word
    with path.open("wb") as file:
        torch.save(checkpoint, file)


def makers(part: str) -> dict[str, Callable[..., Any]]:
    """Makers of all cores or heads of ``conf/``, with small sizes and with dropouts of 0.5.

    The last one is that of examples/own_parts.
    """
    found: dict[str, Callable[..., Any]] = {}
    for path in sorted((conf_dir() / "model" / part).glob("*.yaml")):
        choice = ("model=awd_lstm", f"model/{part}={path.stem}", f"model.embedding_size={SIZE}")
        node: dict[str, Any] = config_of(*choice)["model"][part]
        module, _, name = node.pop("_target_").rpartition(".")
        for key, value in node.items():
            if type(value) is int:
                node[key] = min(value, SIZE)
            elif type(value) is float and key.endswith("dropout"):
                node[key] = 0.5
        target = getattr(import_module(module), name)
        found[path.stem] = partial(target, input_size=SIZE, **node)
    if part == "core":
        dropouts = dict.fromkeys(NO_DROPOUT, 0.5)
        found["ind_rnn"] = partial(IndRNN, SIZE, SIZE, SIZE, num_layers=3, **dropouts)
    else:
        found["cosine_softmax"] = partial(CosineSoftmax, input_size=SIZE)
    return found
