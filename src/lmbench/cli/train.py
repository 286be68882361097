"""``lmbench-train``: train a language model, test its best checkpoint, write the results."""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lmbench.cli.command import errors_for_users, run_hydra
from lmbench.cli.output_folder import as_typed, register_resolvers
from lmbench.errors import Diverged, UserError, is_out_of_memory
from lmbench.files import replace_text
from lmbench.machine import set_matmul_precision, set_up_allocator, set_up_threads
from lmbench.run.choice import ChosenRun, choose_job, choose_run
from lmbench.run.config import write_run_config
from lmbench.run.directory import (
    DIVERGED,
    alone_in,
    as_override,
    clear_run,
    last_checkpoint,
    shown,
)
from lmbench.run.targets import PLACES, conf_dir, require_known_targets
from lmbench.terminal.printing import printable

if TYPE_CHECKING:
    from lightning import Trainer

    from lmbench.callbacks.run_start import RunStart

log = logging.getLogger(__name__)
register_resolvers()


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
    from lmbench.callbacks.checkpoints import CheckpointIO
    from lmbench.callbacks.run_start import RunStart
    from lmbench.callbacks.stop_on_signal import StopOnSignal
    from lmbench.instantiate import training as build
    from lmbench.instantiate.arguments import factory
    from lmbench.instantiate.loggers import recording
    from lmbench.instantiate.model import build_model
    from lmbench.saved.checkpoint import DATA, load_weights, read_checkpoint
    from lmbench.training.lightning_internals import processes_ending_together

    build.require_known_keys(config)
    build.seed_everything(config)
    set_matmul_precision(config["float32_matmul_precision"], config["trainer"]["accelerator"])
    checkpoint_io, stop = CheckpointIO(), StopOnSignal()
    run_start = RunStart(run_dir, run.changed)
    trainer = build.trainer(config, run_dir, more=[run_start, stop], checkpoint_io=checkpoint_io)
    is_first = trainer.is_global_zero
    with alone_in(run_dir) if is_first else nullcontext():
        last = _checkpoint_to_resume(run_dir) if run.resumes else None
        start = config["init_from"]
        first = last or (start and Path(start, "checkpoints/best.ckpt"))
        checkpoint = None if first is None else read_checkpoint(first)
        corpus = factory(config["data"], "data")()
        datamodule = build.datamodule(config, corpus)
        model = build_model(config["model"], len(corpus.vocabulary), corpus.train)
        module = build.module(config, model)
        if first is not None and checkpoint is not None:
            corpus.require_sha256(checkpoint[DATA]["sha256"])
            load_weights(module, checkpoint["state_dict"], first)
        if is_first:
            if not run.resumes:
                write_run_config(config, run_dir)
            elif last is None:
                clear_run(run_dir)
            log.info("%s: writing to %s", printable(str(config.get("name"))), shown(run_dir))
            for note in corpus.notes:
                log.info("%s: %s", printable(corpus.name), printable(note))
        is_new = is_first and not run.resumes
        with (
            _refused_start_undone(run_start, run_dir) if is_new else nullcontext(),
            stop,
            processes_ending_together(trainer),
            _resume_errors_named(run_start, last),
            _divergence_noted(run_dir),
        ):
            if last is not None and checkpoint is not None:
                checkpoint_io.checkpoint = checkpoint  # Lightning drops it once it has been read
                run_start.first_step = checkpoint["global_step"]
                if is_first:
                    log.info("continuing after step %s", f"{run_start.first_step:,}")
            del checkpoint
            with recording(trainer, config, run_dir):
                return _fit_and_test(trainer, module, datamodule, last)


def _checkpoint_to_resume(run_dir: Path) -> Path | None:
    """Where a resume continues; None if the run was stopped before it saved.

    Raises:
        UserError: The run has ended, and there is no checkpoint any more.
    """
    last = last_checkpoint(run_dir)
    if last is None and (run_dir / "results.json").exists():
        raise UserError(
            f"{run_dir} has ended, and without last.ckpt it cannot be resumed. A new run can "
            f"start from its weights: {as_override('init_from', run_dir)}."
        )
    return last


def _fit_and_test(trainer: "Trainer", module: Any, datamodule: Any, last: Path | None) -> float:
    """Trains, from a checkpoint if there is one to continue from, and tests the best checkpoint.

    Returns:
        The best perplexity on valid.

    Raises:
        UserError: No perplexity was finite; or an option of the trainer does not fit the corpus.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lmbench.saved.checkpoint import load_weights, read_checkpoint

    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=last)
        if module.best is None and "val" not in module.scores:  # a resume may leave nothing to do
            raise UserError(
                "No epoch of this run has been validated, so there is no best checkpoint to test. "
                "Train one epoch more (trainer.max_epochs); the last one is always validated."
            )
        if module.best is None:
            raise Diverged(
                "No validation gave a finite perplexity, so there is no best checkpoint to "
                "test. Lower optimizer.lr or trainer.gradient_clip_val."
            )
        # Not with test(ckpt_path=…), which would put the callbacks back to their state then.
        best = Path(trainer.default_root_dir, "checkpoints/best.ckpt")
        checkpoint = read_checkpoint(best)
        load_weights(module, checkpoint["state_dict"], best)
        # A run resumed from before its best epoch may not have reached that epoch again.
        module.on_load_checkpoint(checkpoint)
        trainer.test(module, datamodule=datamodule, verbose=False)
    except MisconfigurationException as error:  # what it refuses only now
        raise UserError(f"trainer: {error}") from error
    return module.best.score.ppl


@contextmanager
def _resume_errors_named(run_start: "RunStart", last: Path | None) -> Iterator[None]:
    """Names the checkpoint in an error raised while it is loaded."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        is_of_network = type(error).__name__.startswith("Dist")  # torch's: a port in use, say
        if last is None or run_start.has_begun or is_of_network or is_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{last} cannot be resumed ({reason}).") from error


@contextmanager
def _divergence_noted(run_dir: Path) -> Iterator[None]:
    """Notes in the run's folder that it diverged, as a resume would diverge again."""
    try:
        yield
    except Diverged as error:
        with suppress(OSError):  # the error itself is more important
            replace_text(run_dir / DIVERGED, f"{error}\n")
        raise


@contextmanager
def _refused_start_undone(run_start: "RunStart", run_dir: Path) -> Iterator[None]:
    """Removes a new run that is refused before its first step: it could not be resumed either."""
    try:
        yield
    except UserError:
        if not run_start.has_begun:
            clear_run(run_dir)
            (run_dir / "config.yaml").unlink(missing_ok=True)
        raise


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def _main(config: DictConfig) -> float:
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    overrides, of_hydra = map(as_typed, (hydra_config.overrides.task, hydra_config.overrides.hydra))
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    with errors_for_users(run_dir, is_sweep=is_sweep):
        if is_sweep:
            run = choose_job(config, run_dir, overrides, of_hydra)
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
