"""The callbacks of a run, lmbench's and Lightning's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging

from lmbench.callbacks.checkpoints import Checkpoints
from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.errors import UserError
from lmbench.instantiate.arguments import factory, require_inside_run
from lmbench.optim.asgd import ASGD
from lmbench.run.targets import import_target

METRICS = ("val/ppl", "val/nll")
"""What a callback can monitor: known at each validation, whatever the logging interval."""


def build_callbacks(config: Mapping[str, Any], run_dir: Path) -> list[L.Callback]:
    """The callbacks of the config, except those set to null.

    Raises:
        UserError: A value is wrong, or callbacks do not fit each other or the optimizer.
    """
    made: list[L.Callback] = []
    for name, node in config["callbacks"].items():
        if node is None:
            continue
        key = f"callbacks.{name}"
        make = factory(node, key)
        kind = import_target(node["_target_"])
        monitor = node.get("monitor")
        if monitor is not None and monitor not in METRICS:
            raise UserError(f"{key}.monitor={monitor}: choose {' or '.join(METRICS)}.")
        if kind is Checkpoints:
            made.append(make(dirpath=run_dir / "checkpoints"))
        elif kind is ModelCheckpoint:
            require_inside_run({**node, "dirpath": name}, key)
            made.append(make(dirpath=run_dir / name))
        else:
            made.append(make())
    _require_fitting(config, made)
    # Last, so that it saves what a ModelCheckpoint has just done.
    return sorted(made, key=lambda callback: isinstance(callback, Checkpoints))


def _require_fitting(config: Mapping[str, Any], made: list[L.Callback]) -> None:
    if not any(isinstance(callback, Checkpoints) for callback in made):
        raise UserError(
            "callbacks.checkpoints is missing. Without it, a run has nothing to test or to resume. "
            "To save less often: callbacks.checkpoints.interval_minutes=60."
        )
    averages = [callback for callback in made if isinstance(callback, (WeightAveraging, NTASGD))]
    if len(averages) > 1:
        names = " and ".join(type(callback).__name__ for callback in averages)
        raise UserError(
            f"{names} would both put their averages in the model's place. Choose one: "
            "callbacks=default has none, nt_asgd and weight_average one each."
        )
    if averages and str(config["trainer"]["precision"]) == "bf16-true":
        raise UserError(
            f"{type(averages[0]).__name__} cannot be combined with trainer.precision=bf16-true: "
            "with so few bits, an average stops changing after some hundred steps. Set "
            "trainer.precision=bf16-mixed."
        )
    factory(config["optimizer"], "optimizer")  # refuses what is not one
    target = config["optimizer"]["_target_"]
    optimizer = import_target(target)
    is_averaged = isinstance(optimizer, type) and issubclass(optimizer, (ASGD, torch.optim.ASGD))
    is_used = any(isinstance(callback, NTASGD) for callback in made)
    if is_averaged and not is_used and "nt_asgd" not in config["callbacks"]:  # null asks for it
        raise UserError(
            f"optimizer._target_={target}: without callbacks.nt_asgd, nothing would use the "
            "averages, and what is tested would be SGD's last iterate. Set callbacks=nt_asgd, or "
            "optimizer=sgd."
        )
