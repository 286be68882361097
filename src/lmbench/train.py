"""``lmbench-train``: train a language model, test its best checkpoint, write the results."""

import logging
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from lmbench.config import conf_dir, take_over_from_run, write_run_config
from lmbench.errors import UserError
from lmbench.machine import set_up_allocator

log = logging.getLogger(__name__)


def train(config: DictConfig, run_dir: Path) -> float:
    """One run.

    Args:
        config: the composed config.
        run_dir: the folder that takes everything the run writes.

    Returns:
        The best validation perplexity, for sweepers to minimize.
    """
    set_up_allocator()  # before torch takes any memory
    # Slow imports stay out of ``--help`` and shell completion.
    import torch
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lmbench import build

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # devices found, and adverts
    # Lightning 2.6 calls what torch 2.13 has deprecated, at every epoch.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    build.seed_everything(config)
    build.set_matmul_precision(config)
    corpus = build.corpus(config)
    datamodule = build.datamodule(config, corpus)
    model = build.model(config, len(corpus.vocabulary), corpus.train)
    module = build.module(config, model)
    if config.init_from is not None:
        build.load_initial_weights(config, module, datamodule)
    trainer = build.trainer(config, run_dir)
    if trainer.is_global_zero:
        write_run_config(config, run_dir)
    log.info("%s, %s parameters, into %s", config.model.name, f"{model.num_parameters:,}", run_dir)

    try:
        trainer.fit(module, datamodule=datamodule)
        score = getattr(trainer.checkpoint_callback, "best_model_score", None)
        if score is None or not score.exp().isfinite():
            raise UserError(
                "No validation gave a finite perplexity, so there is no best checkpoint to test. "
                "Set optimizer.lr or trainer.gradient_clip_val lower."
            )
        best = torch.load(run_dir / "checkpoints/best.ckpt", weights_only=True, map_location="cpu")
        module.load_state_dict(best["state_dict"])
        trainer.test(module, datamodule=datamodule, verbose=False)
    except MisconfigurationException as error:  # as for limit_val_batches=0.01 of few windows
        raise UserError(f"trainer: {error}") from error
    return float(score.exp())


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
def main(config: DictConfig) -> float:
    """Entry point of the console script."""
    try:
        hydra_config = HydraConfig.get()
        config = take_over_from_run(config, hydra_config.overrides.task)
        return train(config, Path(hydra_config.runtime.output_dir))
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            log.error(error)  # at the end of a sweep Hydra shows that of the first failed job only
        raise CompactHydraException(str(error)) from error
