"""The callbacks of a run, lmbench's and Lightning's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    ProgressBar,
    WeightAveraging,
)

from lmbench.callbacks.checkpoints import Checkpoints
from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.callbacks.progress import Progress
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
        is_each = config["trainer"].get("check_val_every_n_epoch") == 1
        if node.get("check_on_train_epoch_end") and not is_each:
            raise UserError(
                f"{key}.check_on_train_epoch_end=true needs trainer.check_val_every_n_epoch=1. "
                "Leave it out."
            )
        if kind is Checkpoints:
            made.append(make(dirpath=run_dir / "checkpoints"))
        elif kind is ModelCheckpoint:
            folder = str(node.get("dirpath") or name)
            require_inside_run({**node, "dirpath": folder}, key)
            if Path(folder).parts[:1] in ((), ("checkpoints",)):
                raise UserError(
                    f"{key}.dirpath={folder}: lmbench keeps its own checkpoints there. "
                    "Choose another name; the folder is made in the run's directory."
                )
            made.append(factory({**node, "dirpath": str(run_dir / folder)}, key)())
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
    bars = [type(x).__name__ for x in made if isinstance(x, (Progress, ProgressBar))]
    if len(bars) > 1:
        raise UserError(
            f"{' and '.join(bars)} would write over each other. To use a different bar: "
            "callbacks.progress._target_=lightning.pytorch.callbacks.RichProgressBar."
        )
    averages = [callback for callback in made if isinstance(callback, (WeightAveraging, NTASGD))]
    if len(averages) > 1:
        names = " and ".join(type(callback).__name__ for callback in averages)
        raise UserError(
            f"{names} would both put their averages in the model's place. Choose one: "
            "callbacks=default has none, nt_asgd and weight_average one each."
        )
    partial = [x for x in made if isinstance(x, ModelCheckpoint) and x.save_weights_only]
    if averages and partial:
        raise UserError(
            f"{type(partial[0]).__name__} with save_weights_only would save the weights that "
            f"training has reached, and not the averages of {type(averages[0]).__name__}. Set it "
            "to false."
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
