"""``lmbench-train``: train a language model, test its best checkpoint, write the results."""

import logging
import math
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lmbench.command import errors_for_users
from lmbench.config import conf_dir, take_over_from_run, write_run_config
from lmbench.errors import UserError
from lmbench.machine import set_matmul_precision, set_up_allocator
from lmbench.report.scores import read_results
from lmbench.run_config import places_of, resumed_config
from lmbench.run_dir import alone_in, clear_run, is_run
from lmbench.sweep_dir import job_folder, record_job

log = logging.getLogger(__name__)
_NOT_OF_THE_RUN = ("resume", "sweep_resume")
OmegaConf.register_new_resolver(  # Hydra writes into the run that is resumed, if it is one
    "lmbench.run_dir",
    lambda resume, new: resume if resume and is_run(resume) else new,
    replace=True,
)
OmegaConf.register_new_resolver(  # and into the folder that a job of a resumed sweep had before
    "lmbench.job_folder",
    lambda sweep_dir, number, overrides, resume: job_folder(
        Path(sweep_dir), number, overrides, resume=resume is True
    ),
    replace=True,
)


def train(config: DictConfig, run_dir: Path, resumed_with: list[str] | None = None) -> float:
    """One run.

    Args:
        config: the composed config.
        run_dir: the folder that takes everything the run writes.
        resumed_with: the overrides with which the run goes on from its last checkpoint, or starts
            over if it has none; None for a new run.

    Returns:
        The best validation perplexity, for sweepers to minimize.

    Raises:
        UserError: a wrong value, file or number.
        Interrupted: a signal told the run to stop; it has been saved.
    """
    of_the_run = [key for key in map(str, config) if key not in _NOT_OF_THE_RUN]
    config = OmegaConf.masked_copy(config, of_the_run)
    set_up_allocator()  # before torch takes any memory
    # Slow imports stay out of ``--help`` and shell completion.
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lmbench import build
    from lmbench.callbacks.record_overrides import RecordOverrides
    from lmbench.callbacks.stop_on_signal import StopOnSignal
    from lmbench.checkpoint import load_weights, step_to_go_on_from

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices found, and adverts
    # Lightning 2.6 calls what torch 2.13 has deprecated, at every epoch.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    build.seed_everything(config)
    set_matmul_precision(config.float32_matmul_precision, config.trainer.accelerator)
    corpus = build.corpus(config)
    datamodule = build.datamodule(config, corpus)
    model = build.model(config, len(corpus.vocabulary), corpus.train)
    module = build.module(config, model)
    checkpoints, last, first_step = run_dir / "checkpoints", None, 0
    # One before the last tells that there was a last one, and that it is missing.
    has_checkpoint = any((checkpoints / f"{name}.ckpt").exists() for name in ("last", "previous"))
    if resumed_with is not None and has_checkpoint:
        last = checkpoints / "last.ckpt"
        first_step = step_to_go_on_from(last, load_weights(last, module, corpus))
    elif config.init_from is not None:
        load_weights(Path(config.init_from, "checkpoints/best.ckpt"), module, corpus)
    stop = StopOnSignal()
    more = [RecordOverrides(run_dir, resumed_with or []), stop]
    trainer = build.trainer(config, run_dir, more=more, first_step=first_step)

    with alone_in(run_dir) if trainer.is_global_zero else nullcontext(), stop:
        if trainer.is_global_zero and resumed_with is None:
            write_run_config(config, run_dir)
        elif trainer.is_global_zero and last is None:
            clear_run(run_dir)
        elif trainer.is_global_zero:
            (run_dir / "results.json").unlink(missing_ok=True)  # those of the weights of before
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


def train_job(config: DictConfig, run_dir: Path) -> float:
    """One job of a sweep: a new run, or one that a sweep which goes on has done or begun before.

    Args:
        config: the composed config.
        run_dir: the job's folder in the directory of the sweep.

    Returns:
        The best validation perplexity, for sweepers to minimize.

    Raises:
        UserError: see :func:`train`; or the folder belongs to another job.
    """
    given = HydraConfig.get().overrides
    if not OmegaConf.is_missing(config, "resume"):
        raise UserError("resume continues one run: leave out -m.")
    if config.sweep_resume and not any(item.startswith("hydra.sweep.dir=") for item in given.hydra):
        raise UserError("sweep_resume=true needs hydra.sweep.dir=DIR, the sweep to go on with.")
    overrides = list(given.task)
    record_job(run_dir, overrides)
    if config.sweep_resume and (run_dir / "results.json").exists():
        perplexity = read_results(run_dir)["val"]["ppl"]
        log.info("done already, with valid ppl %.2f, in %s", perplexity, run_dir)
        return perplexity
    if config.sweep_resume and is_run(run_dir):
        of_run, new = resumed_config(run_dir, places_of(overrides))
        return train(of_run, run_dir, resumed_with=new)
    return train(take_over_from_run(config, overrides), run_dir)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def main(config: DictConfig) -> float:
    """Entry point of the console script."""
    hydra_config = HydraConfig.get()
    run_dir = Path(hydra_config.runtime.output_dir)
    overrides = list(hydra_config.overrides.task)
    is_sweep = hydra_config.mode == RunMode.MULTIRUN
    with errors_for_users(run_dir, is_sweep=is_sweep):
        if not isinstance(config.sweep_resume, bool):
            raise UserError(f"sweep_resume must be true or false, not {config.sweep_resume}.")
        if is_sweep:
            return train_job(config, run_dir)
        if config.sweep_resume:
            raise UserError("sweep_resume goes on with a sweep (-m); one run: resume=RUN_DIR.")
        if OmegaConf.is_missing(config, "resume"):
            return train(take_over_from_run(config, overrides), run_dir)
        if not config.resume:
            raise UserError("Set resume=RUN_DIR, the directory of the run to continue.")
        of_run, new = resumed_config(Path(config.resume), overrides)
        if not run_dir.samefile(config.resume):
            raise UserError("resume continues a run in its own directory: leave out hydra.run.dir.")
        return train(of_run, run_dir, resumed_with=new)
