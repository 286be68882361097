"""``lmbench-train``: train a language model, test its best checkpoint, write the results."""

import logging
import math
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lmbench.command.chosen_run import chosen_job, chosen_run
from lmbench.command.ending import errors_for_users
from lmbench.command.resolvers import as_typed, register_resolvers
from lmbench.config import conf_dir, config_of_run, require_sound, write_run_config
from lmbench.errors import UserError
from lmbench.machine import set_matmul_precision, set_up_allocator
from lmbench.run.directory import alone_in, clear_run, require_no_links, time_of_change

if TYPE_CHECKING:
    from lightning import Trainer

log = logging.getLogger(__name__)
register_resolvers()


def train(config: DictConfig, run_dir: Path, resumed_with: list[str] | None = None) -> float:
    """One run.

    Args:
        config: The composed config.
        run_dir: The folder that takes everything the run writes.
        resumed_with: The overrides with which the run goes on from its last checkpoint, or starts
            over if it has none; None for a new run.

    Returns:
        The best validation perplexity, for sweepers to minimize.

    Raises:
        UserError: A wrong value, file or number.
        Interrupted: A signal told the run to stop; it has been saved.
    """
    require_no_links(run_dir)
    config = config_of_run(config)
    require_sound(config, is_new=resumed_with is None)
    set_up_allocator()
    # Slow imports stay out of ``--help`` and shell completion.
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lmbench import build
    from lmbench.callbacks.resumed import Resumed
    from lmbench.callbacks.stop_on_signal import StopOnSignal
    from lmbench.saved.checkpoint import load_weights, step_to_go_on_from

    build.seed_everything(config)
    set_matmul_precision(config.float32_matmul_precision, config.trainer.accelerator)
    corpus = build.corpus(config)
    datamodule = build.datamodule(config, corpus)
    model = build.model(config, len(corpus.vocabulary), corpus.train)
    module = build.module(config, model)
    checkpoints, last, first_step = run_dir / "checkpoints", None, 0
    read_at = time_of_change(checkpoints / "last.ckpt")
    # One before the last tells that there was a last one, and that it is missing.
    has_checkpoint = any((checkpoints / f"{name}.ckpt").exists() for name in ("last", "previous"))
    if resumed_with is not None and has_checkpoint:
        last = checkpoints / "last.ckpt"
        first_step = step_to_go_on_from(last, load_weights(last, module, corpus))
    elif config.init_from is not None:
        load_weights(Path(config.init_from, "checkpoints/best.ckpt"), module, corpus)
    stop = StopOnSignal()
    more = [stop] if resumed_with is None else [Resumed(run_dir, resumed_with, first_step), stop]
    trainer = build.trainer(config, run_dir, more=more)

    alone = alone_in(run_dir) if trainer.is_global_zero else nullcontext()
    with alone, stop, _processes_end_together(trainer):
        if trainer.is_global_zero:
            if resumed_with is None:
                write_run_config(config, run_dir)
            elif time_of_change(checkpoints / "last.ckpt") != read_at:
                raise UserError(f"Another process has just worked in {run_dir}. Start again.")
            elif last is None:
                clear_run(run_dir)
            num_parameters = f"{model.num_parameters:,}"
            log.info("%s, %s parameters, into %s", config.model.name, num_parameters, run_dir)
            if last is not None:
                log.info("going on after step %s", f"{first_step:,}")
        try:
            trainer.fit(module, datamodule=datamodule, ckpt_path=last)
            score = getattr(trainer.checkpoint_callback, "best_score", None)
            if score is None or score > math.log(sys.float_info.max):
                raise UserError(
                    "No validation gave a finite perplexity, so there is no best checkpoint to "
                    "test. Set optimizer.lr or trainer.gradient_clip_val lower."
                )
            load_weights(checkpoints / "best.ckpt", module, corpus)
            trainer.test(module, datamodule=datamodule, verbose=False)
        except MisconfigurationException as error:  # as for limit_val_batches=0.01 of few windows
            raise UserError(f"trainer: {error}") from error
    return math.exp(score)


@contextmanager
def _processes_end_together(trainer: "Trainer") -> Iterator[None]:
    """Ends those that Lightning has started here, if an error ends this one.

    On GPUs they would wait for it as long as NCCL does, half an hour.
    """
    try:
        yield
    except BaseException:
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
            # Lightning has a thread that kills this process too when it finds one of them dead.
            getattr(launcher, "procs", []).clear()
        raise


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def main(config: DictConfig) -> float:
    """Entry point of the console script."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    overrides, of_hydra = map(as_typed, (hydra_config.overrides.task, hydra_config.overrides.hydra))
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    with errors_for_users(run_dir, is_sweep=is_sweep):
        if is_sweep:
            run = chosen_job(config, run_dir, overrides, of_hydra)
        else:
            run = chosen_run(config, run_dir, overrides)
        if run.perplexity is not None:
            log.info("done already, with valid ppl %.2f, in %s", run.perplexity, run_dir)
            return run.perplexity
        return train(run.config, run_dir, run.resumed_with)


if __name__ == "__main__":
    main()
