"""Options of the trainer with which a run would not do what it should."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from lmbench.errors import UserError


def require_devices(accelerator: str, devices: int | str | list[int]) -> None:
    """Refuses devices that are not there: Lightning starts any number of processes on a CPU.

    Raises:
        UserError: Naming what this machine has, or the accelerators that lmbench trains on.
    """
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise UserError(
            f"trainer.accelerator={accelerator} is none that lmbench trains on: its sums are "
            "float64, which not every one has. Set it to cpu, cuda, or auto."
        )
    on_cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    there, name = (torch.cuda.device_count(), "GPUs") if on_cuda else (_num_cores(), "CPU cores")
    if accelerator in ("gpu", "cuda") and not on_cuda:
        raise UserError(
            f"trainer.accelerator={accelerator} needs a CUDA device, and PyTorch sees none. "
            "Set trainer.accelerator=cpu, or install a CUDA build of PyTorch."
        )
    if isinstance(devices, int) and not (1 <= devices <= there or (on_cuda and devices == -1)):
        raise UserError(
            f"trainer.devices={devices}, but this machine has {there} {name}. "
            f"Set trainer.devices to a number from 1 to {there}."
        )


# Option of the trainer → the one value that it can have, and why.
_ONLY_VALUES = {
    "accumulate_grad_batches": (
        1,
        "schedules and the scaled learning rate take one step a window. Set batching.batch_size",
    ),
    "val_check_interval": (
        1.0,
        "the best checkpoint is that of an epoch's end. See trainer.check_val_every_n_epoch",
    ),
}


def require_validation(options: Mapping[str, Any]) -> None:
    """Refuses options with which a run would not validate as it should, or lose what it leaves.

    Raises:
        UserError: Naming the option.
    """
    for name in ("gradient_clip_val", "log_every_n_steps"):
        value = options.get(name)
        if isinstance(value, (int, float)) and value < 0:
            raise UserError(f"trainer.{name}={value} must be at least 0, which turns it off.")
    for name, (only, reason) in _ONLY_VALUES.items():
        value = options.get(name)
        if value is not None and (type(value), value) != (type(only), only):  # 1 is not 1.0 there
            raise UserError(f"trainer.{name}={value} does not go with lmbench: {reason}.")
    strategy = options.get("strategy")
    in_python = ("spawn", "fork", "notebook")
    if isinstance(strategy, str) and any(kind in strategy for kind in in_python):
        raise UserError(
            f"trainer.strategy={strategy}: what the training leaves behind would stay in processes "
            "that end with it. Set trainer.strategy=ddp."
        )
    limits = ("max_epochs", "max_steps", "limit_train_batches", "limit_val_batches")
    for name in (*limits, "check_val_every_n_epoch"):
        if options.get(name) == 0:
            raise UserError(
                f"trainer.{name}=0 would leave the run without a validation, by which its best "
                "checkpoint is chosen. Set it to 1 or more, or leave it out."
            )


def require_end(options: Mapping[str, Any], scheduler: str) -> None:
    """Refuses options of the trainer from which a schedule cannot tell where its run ends.

    Args:
        options: The trainer's options.
        scheduler: The target of the schedule, which is one over the whole run.

    Raises:
        UserError: Naming what to set.
    """
    if options.get("max_time") is not None:
        if not scheduler.endswith(".PhasedLR"):
            raise UserError(
                f"scheduler: {scheduler} counts steps, and trainer.max_time would cut it off. Take "
                "optimizer=adam scheduler=phases_awd_lstm, which follows the time, or "
                "scheduler=constant."
            )
    elif options["max_epochs"] in (None, -1) and options["max_steps"] == -1:
        raise UserError(
            "scheduler: the learning rate changes over the whole run, and nothing says when it "
            "ends. Set trainer.max_epochs, max_steps or max_time."
        )


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
