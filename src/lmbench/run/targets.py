"""What a config may name to be called, where it may come from a stranger."""

import os
from collections.abc import Iterator
from typing import Any

from lmbench.errors import UserError

MODEL_TARGETS = {
    "model.core": frozenset({"lmbench.model.core.AWDLSTM", "lmbench.model.core.LSTM"}),
    "model.head": frozenset({"lmbench.model.head.AdaptiveSoftmax", "lmbench.model.head.Softmax"}),
}
"""What may stand at the two places of a model."""

ALLOWED_TARGETS = frozenset(
    {
        "lightning.pytorch.loggers.TensorBoardLogger",
        "lmbench.callbacks.checkpoints.Checkpoints",
        "lmbench.callbacks.finite_loss.FiniteLoss",
        "lmbench.callbacks.metrics_csv.MetricsCSV",
        "lmbench.callbacks.nt_asgd.NTASGD",
        "lmbench.callbacks.progress.Progress",
        "lmbench.callbacks.throughput.Throughput",
        "lmbench.data.corpus.load_text",
        "lmbench.data.published.load_penn_treebank",
        "lmbench.data.published.load_wikitext2",
        "lmbench.data.synthetic.make_corpus",
        *MODEL_TARGETS["model.core"],
        *MODEL_TARGETS["model.head"],
        "lmbench.optim.ASGD",
        "lmbench.optim.PhasedLR",
        "torch.optim.ASGD",
        "torch.optim.Adam",
        "torch.optim.AdamW",
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.OneCycleLR",
        "torch.optim.lr_scheduler.ReduceLROnPlateau",
    }
)
"""What a run's own config may name by ``_target_``; a prefix would let in what a module imports."""

ALLOWED_TARGETS_VARIABLE = "LMBENCH_ALLOWED_TARGETS"
"""Environment variable with more of them, between commas."""


def refuse_calls(config: Any, where: str) -> None:
    """Refuses what would call anything but an allowed target, or read what is not in the config.

    Args:
        config: Plain values, as they were read.
        where: What error messages call the place that they come from.

    Raises:
        UserError: Naming the key.
    """
    more = os.environ.get(ALLOWED_TARGETS_VARIABLE, "").split(",")
    allowed = ALLOWED_TARGETS | {target.strip() for target in more if target.strip()}
    for key, value in _leaves(config):
        if isinstance(value, str) and "${" in value:
            raise UserError(
                f"{where}: {key} is an interpolation, which lmbench never writes there and which "
                "could read what is none of its business. Replace it by its value."
            )
        if key.rpartition(".")[2] != "_target_":
            continue
        if not isinstance(value, str) or value not in allowed:
            raise UserError(
                f"{where}: {key} names {value}, and what a run's config names is called. If you "
                f"trust it, set the environment variable {ALLOWED_TARGETS_VARIABLE}={value}."
            )
        if value.startswith("lmbench.data.") and key != "data._target_":  # writes a cache
            raise UserError(f"{where}: {key} names {value}, which belongs at data alone.")
        here = MODEL_TARGETS.get(key.removesuffix("._target_"))
        if here is not None and value in ALLOWED_TARGETS - here:
            raise UserError(f"{where}: {key} names {value}, which does not belong there.")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested lists and dicts; what stands at ``_target_`` is not taken apart."""
    if key.rpartition(".")[2] == "_target_":
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            inner = f"{key}.{name}" if key else str(name)
            yield from _leaves(item, inner)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}[{index}]")
    else:
        yield key, value
