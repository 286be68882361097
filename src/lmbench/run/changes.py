"""What a command may change in the config of a run that it resumes or starts from."""

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lmbench.errors import UserError
from lmbench.run.config import INHERITED_NODES, MACHINE_KEYS, read_run_config, set_value
from lmbench.run.directory import key_of
from lmbench.run.targets import import_target, takes

LENGTHS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")

RESUMABLE = (
    *LENGTHS,
    *MACHINE_KEYS,
    "trainer.accelerator",
    "trainer.devices",
    "trainer.precision",
    "float32_matmul_precision",
    "trainer.log_every_n_steps",
    "trainer.check_val_every_n_epoch",
    "trainer.limit_test_batches",
    "trainer.gradient_clip_val",
    "callbacks.checkpoints.interval_minutes",
    "callbacks.nt_asgd.non_monotone_interval",
    "loss.ar_alpha",
    "loss.tar_beta",
    "evaluation.window",
)
"""All that a resume may change. Anything else would make it a different run, or is a value that the
optimizer's state and the best score so far depend on."""


def resumed_config(
    run_dir: Path, overrides: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The config with which a run continues: the one place that decides what may change.

    Args:
        run_dir: The run's directory.
        overrides: The command line's.

    Returns:
        The config to continue with, and the config to write when that begins; None if no change
        is to be kept.

    Raises:
        UserError: See :func:`lmbench.run.config.read_run_config`; or an override is not
            one of :data:`RESUMABLE`.
    """
    config = read_run_config(run_dir)
    kept = copy.deepcopy(config)
    is_changed = False
    for override in overrides:
        key, equals, _ = override.lstrip("+").partition("=")
        if key == "resume":
            continue
        if key not in RESUMABLE or not equals:
            raise UserError(
                f"{override} cannot be changed in a resume: that would make it a different run. "
                f"What can be changed: {', '.join(RESUMABLE)}. A new run can start from the "
                "weights of this one: init_from=RUN_DIR."
            )
        scheduler = config.get("scheduler")
        if key in LENGTHS and scheduler and takes(scheduler, "total_steps"):
            raise UserError(
                f"{override} cannot be changed in a resume: the learning rate follows a schedule "
                "that was made for the whole run. A new run can start from the weights of this "
                "one: init_from=RUN_DIR."
            )
        given = OmegaConf.create({"value": _value_of(override)})  # such as ${oc.env:DATA}/text
        resolved: Any = OmegaConf.to_container(given, resolve=True)
        value = resolved["value"]
        set_value(config, override, key, value)
        if key == "trainer.precision":
            before = kept["trainer"]["precision"]
            if _precision_of_weights(before) != _precision_of_weights(value):
                raise UserError(
                    f"{override} cannot be changed in a resume: the run's weights have the "
                    f"precision of {before}."
                )
        if key not in MACHINE_KEYS:
            set_value(kept, override, key, value)
            is_changed = True
    return config, kept if is_changed else None


def apply_init_from(config: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Takes over what belongs to the weights of the run that ``config.init_from`` names, if any.

    That is its data, model, batching, loss and evaluation.

    Args:
        config: The composed config.
        overrides: The command line's; those that set values in these nodes still win.

    Raises:
        UserError: No folder is named, or it holds no run; or an override chooses a node anew.
    """
    if config.init_from is None:
        return config
    if config.init_from == "":
        raise UserError("Set init_from=RUN_DIR, the directory of the run to start from.")
    config = config.copy()
    config.init_from = str(config.init_from)  # the folder of a sweep's job may be named by a number
    run = read_run_config(config.init_from)
    taken = OmegaConf.create({node: run[node] for node in INHERITED_NODES})
    before = taken.copy()
    for override in overrides:
        key = key_of(override)
        is_whole = key == "ablation" or override == "debug=overfit"
        if not is_whole and re.split(r"[./@]", key)[0] not in INHERITED_NODES:
            continue
        if is_whole or "." not in key or override.startswith("~"):
            raise UserError(
                f"{override} cannot be combined with init_from={config.init_from}, which brings "
                f"its own {', '.join(INHERITED_NODES)}. Leave it out; single values can be set, "
                "such as loss.ar_alpha=0, or +model.core.…= for what the default model lacks."
            )
        OmegaConf.update(taken, key, _value_of(override), force_add=True)
    for key in _layout_keys(run["model"]):
        if OmegaConf.select(taken, key) != OmegaConf.select(before, key):
            raise UserError(
                f"{key} cannot be changed with init_from={config.init_from}: the weights would fit "
                "in shape, but they were trained for the run's own value. Leave it out."
            )
    for node, content in taken.items():
        config[node] = content
    return config


def _layout_keys(model: Mapping[str, Any]) -> list[str]:
    """Keys that change what a model's weights mean without changing their shapes."""
    parts = {x: node for x, node in model.items() if isinstance(node, dict) and "_target_" in node}
    return [
        f"model.{part}.{name}"
        for part, node in parts.items()
        for name in getattr(import_target(node["_target_"]), "layout_arguments", ())
    ]


def _precision_of_weights(precision: Any) -> str:
    text = str(precision)  # 32 and "32-true" mean the same, 16 and "16-mixed", too
    text = {"16": "16-mixed", "bf16": "bf16-mixed"}.get(text, text)
    return "32" if text.endswith("-mixed") else text.removesuffix("-true")


def _value_of(override: str) -> Any:
    """The value as Hydra reads it: not all of its grammar is YAML."""
    return OverridesParser.create().parse_override(override).value()
