"""``lmbench-evaluate``: evaluate a run's best checkpoint in one of the published ways."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from lmbench.cli.command import OPTIONS_WITH_A_VALUE, errors_for_users, run_hydra
from lmbench.cli.suggestions import explain_arguments
from lmbench.errors import UserError
from lmbench.files import is_folder
from lmbench.machine import device_of, set_matmul_precision, set_up_allocator, set_up_threads
from lmbench.run.config import read_run_config, set_value
from lmbench.run.directory import quoted
from lmbench.run.targets import DATA_PLACES, MODEL_PLACES, conf_dir
from lmbench.terminal.printing import printable, printing

if TYPE_CHECKING:
    from lmbench.data.vocabulary import Vocabulary
    from lmbench.model import LanguageModel

_KEYS = ("run", "split", "data", "device", "float32_matmul_precision", "evaluation")


def evaluate(config: DictConfig, name: str) -> float:
    """One evaluation of a run's valid or test split, or of both, written into its directory.

    Args:
        config: The composed config.
        name: Name of the evaluation, in the names of its files.

    Returns:
        The perplexity of the last split; for minimal pairs, the accuracy.

    Raises:
        UserError: A wrong value or file; the run's directory cannot be written; the model gives a
            target no probability; stdout cannot be written.
    """
    for key in config:
        if key not in _KEYS:
            raise UserError(f"{key} is not an option. Choose from {', '.join(_KEYS)}.")
    splits = config.split if isinstance(config.split, ListConfig) else [config.split]
    if not splits or set(splits) - {"valid", "test"}:
        given = ",".join(map(str, splits))
        raise UserError(f"split={given} must be valid, test or valid,test.")
    run_dir = Path(str(config.run))  # a sweep's job has a number for a name
    run_config = read_run_config(run_dir, (*MODEL_PLACES, *DATA_PLACES))
    if not os.access(run_dir, os.W_OK):
        raise UserError(
            f"{run_dir} cannot be written to, and results belong there. Copy the run to a folder "
            "of your own, and evaluate that."
        )
    for key, place in config.data.items():
        if place is not None:
            set_value(run_config, f"data.{key}={place}", f"data.{key}", place)
    set_up_threads()
    # Sentences differ in length: for them it costs memory and time.
    set_up_allocator(keep_large="pairs" not in config.evaluation)
    # Slow imports stay out of ``--help`` and shell completion.
    from lmbench.evaluation import outcome
    from lmbench.instantiate.arguments import convert, factory
    from lmbench.instantiate.evaluator import build_evaluator
    from lmbench.instantiate.model import build_saved
    from lmbench.saved.checkpoint import read_run_model

    for key in ("tune", "save_tokens"):
        convert(f"evaluation.{key}", config.evaluation.get(key), bool)
    device = device_of(config.device)
    set_matmul_precision(config.float32_matmul_precision, device.type)
    saved = read_run_model(run_dir)
    model = build_saved(saved).to(device)
    of_run = {
        "model": run_config["model"].get("name", ""),
        "seed": run_config.get("seed"),
        "weights_sha256": model.weights_sha256(),
        "device": str(device),
    }
    if model.embedding.weight.dtype.itemsize < 4:
        model.float()  # so that small steps of dynamic evaluation are not rounded away
    node = cast(dict[str, Any], OmegaConf.to_container(config.evaluation, resolve=True))
    if "pairs" in node:
        of_run["corpus_sha256"] = saved.corpus_sha256
        return _evaluate_pairs(node, model, saved.vocabulary, of_run, run_dir)
    corpus = factory(run_config["data"], "data")()
    corpus.require_sha256(saved.corpus_sha256)
    evaluator = build_evaluator(node, model, corpus, folder=run_dir / "checkpoints")
    tune, save_tokens = config.evaluation.tune, config.evaluation.save_tokens
    perplexities = []
    for found in outcome.evaluate(evaluator, splits, name=name, of_run=of_run, tune=tune):
        try:  # shown before a full disk can lose them, and written whatever becomes of stdout
            with printing(f" The results are in {run_dir}."):
                outcome.show(found.results)
        finally:
            outcome.write(found, run_dir, save_tokens=save_tokens)
        perplexities.append(found.results["ppl"])
    return perplexities[-1]


def _evaluate_pairs(
    node: dict[str, Any],
    model: "LanguageModel",
    vocabulary: "Vocabulary",
    of_run: dict[str, Any],
    run_dir: Path,
) -> float:
    from lmbench.data.minimal_pairs import read_pairs
    from lmbench.data.tokenizer.choice import tokenizer_for
    from lmbench.evaluation import minimal_pairs
    from lmbench.instantiate.arguments import convert

    if node["pairs"] is None:
        raise UserError("Set evaluation.pairs=…, a file, a folder or a zip archive of pairs.")
    others = [name for name, value in node.items() if isinstance(value, dict)]
    others += [f"evaluation.{key}=true" for key in ("tune", "save_tokens") if node[key]]
    if others:
        raise UserError(f"evaluation=minimal_pairs cannot be combined with {', '.join(others)}.")
    tokenizer = node.get("tokenizer")
    convert("evaluation.tokenizer", tokenizer, str | None)
    try:
        cutter = tokenizer_for(vocabulary, tokenizer)
    except ValueError as error:
        raise UserError(f"evaluation.{error}.") from error
    pairs = read_pairs(Path(str(node["pairs"])))
    results, scores = minimal_pairs.evaluate_pairs(model, vocabulary, cutter, pairs, of_run=of_run)
    try:
        with printing(f" The results are in {run_dir}."):
            minimal_pairs.show_pairs(results)
    finally:
        minimal_pairs.write_pairs(results, scores, pairs, run_dir)
    return results["accuracy"]


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="evaluate")
def _main(config: DictConfig) -> float:
    hydra_config = HydraConfig.get()
    is_missing = config.run in (None, "")
    run_dir = Path("" if is_missing else str(config.run))
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    with errors_for_users(run_dir, is_sweep=is_sweep, is_training=False):
        if is_missing:
            raise UserError("Name the directory of a run: lmbench-evaluate RUN_DIR.")
        return evaluate(config, _name(hydra_config.overrides.task))


def _name(overrides: Sequence[str]) -> str:
    """Name of an evaluation: what the command line chose, of a list in alphabetical order.

    ``dynamic_cache`` is the same as ``[dynamic,cache]``.

    Raises:
        UserError: Two of the list set the same values.
    """
    chosen = "standard"
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "evaluation":
            chosen = value.strip("[]")
    names = {name.strip(" '\"") for name in chosen.split(",")} - {"standard"}
    if "dynamic_cache" in names:
        names = names - {"dynamic_cache"} | {"dynamic", "cache"}
    if names >= {"dynamic", "dynamic_sgd"}:
        raise UserError(
            f"evaluation=[{chosen}] can have only one rule of dynamic evaluation. To try both: "
            "-m evaluation=dynamic,dynamic_sgd"
        )
    if names >= {"dynamic", "cache"}:
        names = names - {"dynamic", "cache"} | {"dynamic_cache"}
    return "_".join(sorted(names)) or "standard"


def with_run(arguments: Sequence[str]) -> list[str]:
    """The command line with bare run directories turned into ``run=DIR``, and splits into a list.

    Several runs make a sweep, even without ``-m``.

    >>> with_run(["outputs/1", "split=valid", "--cfg", "job"])
    ['split=valid', '--cfg', 'job', 'run=outputs/1']
    >>> with_run(["a", "b"])
    ['-m', 'run=a,b']
    >>> with_run(["a", "split=valid,test"])
    ['split=[valid,test]', 'run=a']
    """
    are_runs = _are_runs(arguments)
    folders = [quoted(text) for text, yes in zip(arguments, are_runs, strict=True) if yes]
    others = [text for text, yes in zip(arguments, are_runs, strict=True) if not yes]
    if folders and any(text.startswith("run=") for text in others):
        sys.exit("Give the runs by their folders, or by run=…, not both.")
    others = [re.sub(r"^split=(\w+(,\w+)+)$", r"split=[\1]", text) for text in others]
    if len(folders) > 1 and not {"-m", "--multirun"} & set(others):
        others.insert(0, "-m")
    return [*others, *([f"run={','.join(folders)}"] if folders else [])]


def _are_runs(arguments: Sequence[str]) -> list[bool]:
    """Which arguments name runs: they are folders, or neither overrides nor options."""
    return [
        before not in OPTIONS_WITH_A_VALUE
        and (is_folder(text) or not re.match(r"[-+~]|[\w./@]+=", text))
        for before, text in zip(["", *arguments], arguments, strict=False)
    ]


def _require_folders(arguments: Sequence[str]) -> None:
    """Ends the command if a run is not a folder, before the others are evaluated."""
    if message := explain_arguments(arguments, "evaluate"):  # of --split valid, valid is not a run
        sys.exit(printable(message))
    for text, is_run in zip(arguments, _are_runs(arguments), strict=True):
        if is_run and not is_folder(text):
            is_option = (conf_dir() / "evaluation" / f"{text}.yaml").is_file()
            hint = f" Did you mean evaluation={text}?" if is_option else ""
            sys.exit(printable(f"{text} is not the directory of a run.{hint}"))


def main() -> None:
    """Entry point of the console script."""
    _require_folders(sys.argv[1:])
    sys.argv[1:] = with_run(sys.argv[1:])
    run_hydra(_main, "evaluate")


if __name__ == "__main__":
    main()
