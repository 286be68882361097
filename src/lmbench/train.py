"""``lmbench-train``: train a language model, test its best checkpoint, write the results."""

import logging
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lmbench.command.chosen_run import chosen_job, chosen_run
from lmbench.command.ending import errors_for_users
from lmbench.command.processes import processes_end_together
from lmbench.command.resolvers import as_typed, register_resolvers
from lmbench.config import conf_dir, config_of_run, require_sound, write_run_config
from lmbench.errors import UserError
from lmbench.machine import set_matmul_precision, set_up_allocator
from lmbench.run.directory import alone_in, clear_run, require_no_links, time_of_change

if TYPE_CHECKING:
    from lightning import Trainer

    from lmbench.data.corpus import Corpus
    from lmbench.data.datamodule import LanguageModelDataModule
    from lmbench.module import LanguageModelModule

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
    from lmbench import build
    from lmbench.callbacks.resumed import Resumed
    from lmbench.callbacks.stop_on_signal import StopOnSignal

    build.seed_everything(config)
    set_matmul_precision(config.float32_matmul_precision, config.trainer.accelerator)
    corpus = build.corpus(config)
    datamodule = build.datamodule(config, corpus)
    model = build.model(config, len(corpus.vocabulary), corpus.train)
    module = build.module(config, model)
    last = run_dir / "checkpoints/last.ckpt"
    read_at = time_of_change(last)
    first_step = _take_up_weights(config, last, module, corpus, resumes=resumed_with is not None)
    stop = StopOnSignal()
    if resumed_with is None:
        trainer = build.trainer(config, run_dir, more=[stop])
        build.require_use_of_averages(config, trainer)
    else:
        resumed = Resumed(run_dir, resumed_with, first_step or 0)
        trainer = build.trainer(config, run_dir, more=[resumed, stop])

    alone = alone_in(run_dir) if trainer.is_global_zero else nullcontext()
    with alone, stop, processes_end_together(trainer):
        if trainer.is_global_zero:
            if resumed_with is None:
                write_run_config(config, run_dir)
            elif time_of_change(last) != read_at:
                raise UserError(f"Another process has just worked in {run_dir}. Start again.")
            elif first_step is None:
                clear_run(run_dir)
            num_parameters = f"{model.num_parameters:,}"
            log.info("%s, %s parameters, into %s", config.model.name, num_parameters, run_dir)
            if first_step is not None:
                log.info("going on after step %s", f"{first_step:,}")
        score = _fit_and_test(trainer, module, datamodule, None if first_step is None else last)
    return math.exp(score)


def _take_up_weights(
    config: DictConfig,
    last: Path,
    module: "LanguageModelModule",
    corpus: "Corpus",
    *,
    resumes: bool,
) -> int | None:
    """Gives the module the weights to start from, if it has not to start from scratch.

    Returns:
        The number of steps after which a run goes on; None for one that starts, or starts over.
    """
    from lmbench.saved.checkpoint import load_weights, step_to_go_on_from

    # One before the last tells that there was a last one, and that it is missing.
    if resumes and (last.exists() or last.with_name("previous.ckpt").exists()):
        return step_to_go_on_from(last, load_weights(last, module, corpus))
    if config.init_from is not None:
        load_weights(Path(config.init_from, "checkpoints/best.ckpt"), module, corpus)
    return None


def _fit_and_test(
    trainer: "Trainer",
    module: "LanguageModelModule",
    datamodule: "LanguageModelDataModule",
    last: Path | None,
) -> float:
    """Trains, from a checkpoint if there is one to go on from, and tests the best checkpoint.

    Returns:
        The best nats per token on valid.

    Raises:
        UserError: None was finite; or an option of the trainer does not go with the corpus.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lmbench.callbacks.checkpoints import Checkpoints
    from lmbench.saved.checkpoint import load_weights

    (checkpoints,) = (one for one in trainer.checkpoint_callbacks if isinstance(one, Checkpoints))
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=last)
        score = checkpoints.best_score
        if score is None or score > math.log(sys.float_info.max):
            raise UserError(
                "No validation gave a finite perplexity, so there is no best checkpoint to "
                "test. Set optimizer.lr or trainer.gradient_clip_val lower."
            )
        load_weights(checkpoints.last_path.with_name("best.ckpt"), module, datamodule.corpus)
        trainer.test(module, datamodule=datamodule, verbose=False)
    except MisconfigurationException as error:  # what it refuses only now
        raise UserError(f"trainer: {error}") from error
    return score


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
