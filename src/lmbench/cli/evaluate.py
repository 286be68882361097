"""``lmbench-evaluate``: measure what a run's best checkpoint can do."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lmbench.cli._command import errors_for_users, run_hydra
from lmbench.cli._run_arguments import require_folders, with_run
from lmbench.cli.output_folder import register
from lmbench.errors import UserError
from lmbench.files import read_yaml
from lmbench.machine import device_of, set_matmul_precision, set_up_allocator, set_up_threads
from lmbench.run.targets import conf_dir, conf_files
from lmbench.terminal.printing import printing

register()

_KEYS = {"run", "split", "data", "device", "float32_matmul_precision", "evaluation"}


def evaluate(config: DictConfig, name: str) -> float:
    """Measures a run, and writes what is found into its directory.

    Args:
        config: The composed config.
        name: Name of the evaluation, in the names of its files.

    Returns:
        The last result: a perplexity or, for minimal pairs, an accuracy.

    Raises:
        UserError: A wrong key, value or file; the run's directory or stdout cannot be written.
    """
    keys = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    for key in keys.keys() - _KEYS:
        raise UserError(f"{key} is not an option. Choose from {', '.join(sorted(_KEYS))}.")
    run_dir = Path(str(keys["run"]))  # a sweep's job has a number for a name
    splits = keys["split"] if isinstance(keys["split"], list) else [keys["split"]]
    if not splits or set(splits) - {"valid", "test"}:
        raise UserError(f"split={','.join(map(str, splits))} must be valid, test or valid,test.")
    if run_dir.is_dir() and not os.access(run_dir, os.W_OK):
        raise UserError(f"{run_dir} cannot be written to: results belong there. Evaluate a copy.")
    set_up_threads()
    set_up_allocator()
    # Slow imports stay out of ``--help`` and shell completion.
    from lmbench.instantiate.evaluator import build_measure, trained_run

    device = device_of(keys["device"])
    set_matmul_precision(keys["float32_matmul_precision"], device.type)
    measure = build_measure(keys["evaluation"])
    run = trained_run(run_dir, keys["data"], device)
    figures = []
    for outcome in measure.outcomes(run, splits, name):
        try:  # shown before a full disk can lose them, and written whatever becomes of stdout
            with printing(f" The results are in {run_dir}."):
                print(outcome.table)
        finally:
            outcome.write(run_dir)
        figures.append(outcome.figure)
    return figures[-1]


def evaluation_name(overrides: Sequence[str]) -> str:
    """What the command line chose with ``evaluation=``, of a list in alphabetical order.

    What an option combines goes by that option's name: ``dynamic_cache`` for ``[dynamic,cache]``.

    Raises:
        UserError: An option is chosen together with one that it changes: Hydra would mix the two.
    """
    values = [x.partition("=")[2] for x in overrides if x.startswith("evaluation=")]
    names = {name.strip(" '\"[]") for name in ["standard", *values][-1].split(",")} - {"standard"}
    combinations, variants = _built_on_others()
    for combination in combinations.keys() & names:
        names = names - {combination} | combinations[combination]
    for variant in variants.keys() & names:
        for other in variants[variant] & names:
            raise UserError(
                f"{variant} is a variant of {other}. To evaluate with one, then with the other: "
                f"-m evaluation={other},{variant}"
            )
    for combination, parts in combinations.items():
        if parts <= names:
            names = names - parts | {combination}
    return "_".join(sorted(names)) or "standard"


def _built_on_others() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Options of ``evaluation=`` that only combine others, and those that change others."""
    combinations, variants = {}, {}
    for path in conf_files("evaluation"):
        node = read_yaml(path)
        if "defaults" in node:
            kind = combinations if len(node) == 1 else variants
            kind[path.stem] = set(node["defaults"])
    return combinations, variants


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="evaluate")
def _main(config: DictConfig) -> float:
    hydra_config = HydraConfig.get()
    run_dir = Path(str(config.run or ""))
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    with errors_for_users(run_dir, is_sweep=is_sweep, is_training=False):
        if config.run in (None, ""):
            raise UserError("Name the directory of a run: lmbench-evaluate RUN_DIR.")
        return evaluate(config, evaluation_name(hydra_config.overrides.task))


def main() -> None:
    """Entry point of the console script."""
    require_folders(sys.argv[1:])
    sys.argv[1:] = with_run(sys.argv[1:])
    run_hydra(_main, "evaluate")


if __name__ == "__main__":
    main()
