"""``lmbench-train``: train a language model, test its best checkpoint, write the results."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lmbench.cli._command import errors_for_users, run_hydra
from lmbench.cli.output_folder import register, unresolved
from lmbench.errors import Diverged, UserError
from lmbench.machine import set_matmul_precision, set_up_allocator, set_up_threads
from lmbench.run.choice import ChosenRun, choose_job, choose_run
from lmbench.run.config import model_name
from lmbench.run.directory import shown
from lmbench.run.targets import PLACES, conf_dir, require_known_targets
from lmbench.terminal.printing import printable

if TYPE_CHECKING:
    from lightning import Trainer

    from lmbench.data.corpus import Corpus
    from lmbench.training.module import LanguageModelModule

log = logging.getLogger(__name__)
register()


def train(run: ChosenRun, run_dir: Path) -> float:
    """Trains a run and tests its best checkpoint.

    Args:
        run: The run, new or to be continued from its last checkpoint. One that has none starts
            over.
        run_dir: The folder that takes everything the run writes.

    Returns:
        The best validation perplexity, for sweepers to minimize.

    Raises:
        UserError: A wrong value, file or number.
        Interrupted: A signal told the run to stop; it has been saved.
    """
    config = run.config
    # A run whose classes are not known could not be resumed, evaluated or loaded later.
    require_known_targets(config, PLACES, "This config")
    set_up_threads()
    set_up_allocator()
    # Slow imports stay out of ``--help`` and shell completion.
    from lmbench.callbacks.run_start import RunStart
    from lmbench.callbacks.stop_on_signal import StopOnSignal
    from lmbench.instantiate import training as build
    from lmbench.instantiate.arguments import factory
    from lmbench.instantiate.loggers import recording
    from lmbench.instantiate.model import build_model
    from lmbench.training.lightning_internals import processes_ending_together

    build.require_known_keys(config)
    build.seed_everything(config)
    set_matmul_precision(config["float32_matmul_precision"], config["trainer"]["accelerator"])
    start, stop = RunStart(run, run_dir), StopOnSignal()
    trainer = build.trainer(config, run_dir, more=[start, stop])
    corpus = factory(config["data"], "data")()
    datamodule = build.datamodule(config, corpus)
    model = build_model(config["model"], len(corpus.vocabulary), corpus.train)
    module = build.module(config, model)
    is_first = trainer.is_global_zero
    with start.in_directory(is_first=is_first) as last, stop, processes_ending_together(trainer):
        best_of_other = config["init_from"] and Path(config["init_from"], "checkpoints/best.ckpt")
        if source := last or best_of_other:
            _load(module, corpus, source)
        if is_first:
            log.info("%s: writing to %s", printable(str(config.get("name"))), shown(run_dir))
            for note in corpus.notes:
                log.info("%s: %s", printable(corpus.name), printable(note))
            if note := _note_on_optimizer(config):
                log.info("%s", printable(note))
        with recording(trainer, config, run_dir):
            return _fit_and_test(trainer, module, datamodule, last)


def _note_on_optimizer(config: Mapping[str, Any]) -> str:
    """What to say if a core was put into a recipe of SGD, whose rate suits only its own core."""
    name, optimizer = model_name(config["model"]), config["optimizer"]
    is_of_recipe = name == config["model"].get("name")
    if is_of_recipe or "lr" not in optimizer or not optimizer["_target_"].endswith("SGD"):
        return ""
    return (
        f"{name}: SGD's learning rate, {optimizer['lr']}, was chosen for another core. "
        "experiment=cores trains every core, by Adam."
    )


def _load(module: "LanguageModelModule", corpus: "Corpus", path: Path) -> dict[str, Any]:
    """Loads the weights of a checkpoint, whose corpus must be the same; returns the checkpoint."""
    from lmbench.saved.checkpoint import DATA, load_weights, read_checkpoint

    checkpoint = read_checkpoint(path)
    corpus.require_sha256(checkpoint[DATA]["sha256"])
    load_weights(module, checkpoint["state_dict"], path)
    return checkpoint


def _fit_and_test(
    trainer: "Trainer", module: "LanguageModelModule", datamodule: Any, last: Path | None
) -> float:
    """Trains, from the last checkpoint if there is one; tests the best; returns its perplexity."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=last)
        if module.best is None:
            raise Diverged(
                "No validation gave a finite perplexity, so there is no best checkpoint to test. "
                "Lower optimizer.lr or trainer.gradient_clip_val, or train an epoch more."
            )
        # Not with test(ckpt_path=…), which would put the callbacks back to their state then. A run
        # resumed from before its best epoch may not have reached that epoch again.
        best = Path(trainer.default_root_dir, "checkpoints/best.ckpt")
        module.restore_best(_load(module, datamodule.corpus, best))
        trainer.test(module, datamodule=datamodule, verbose=False)
    except MisconfigurationException as error:  # what it refuses only now
        raise UserError(f"trainer: {error}") from error
    return module.best.score.ppl


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def _main(config: DictConfig) -> float:
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    overrides = unresolved(hydra_config.overrides.task)
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    with errors_for_users(run_dir, is_sweep=is_sweep):
        if is_sweep:
            run = choose_job(config, run_dir, overrides, unresolved(hydra_config.overrides.hydra))
        else:
            run = choose_run(config, run_dir, overrides)
        if run.perplexity is not None:
            log.info("done already, with valid ppl %.2f, in %s", run.perplexity, run_dir)
            return run.perplexity
        perplexity = train(run, run_dir)
    from lightning.pytorch.utilities import rank_zero_only  # slow to import, and imported by now

    is_first = getattr(rank_zero_only, "rank", 0) == 0
    if is_first and not is_sweep:  # a sweep ends with a table of its jobs, and its own advice
        _say_what_next(run_dir)
    return perplexity


def _say_what_next(run_dir: Path) -> None:
    folder = shlex.quote(shown(run_dir))
    commands = [
        f"lmbench-generate {folder}",
        f"lmbench-evaluate {folder} evaluation=cache",
        f"lmbench-compare {folder} OTHER_RUN_DIR --output comparison",
    ]
    if any(run_dir.glob("*/events.out.tfevents*")):
        commands.append(f"tensorboard --logdir {folder}")
    log.info("What you can do next:\n%s", "\n".join(f"  {command}" for command in commands))


def main() -> None:
    """Entry point of the console script."""
    run_hydra(_main, "train")


if __name__ == "__main__":
    main()
