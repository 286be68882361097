"""Shapes in signatures are checked under test; in production they are only documentation."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# An int can stand where a float is annotated (PEP 484), as it can everywhere in Python.
install_import_hook(
    ["lmbench.data", "lmbench.evaluation", "lmbench.loss", "lmbench.model", "lmbench.optim"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

RESULTS = {
    "lmbench_version": "0.1.0",
    "seed": 1,
    "precision": "32-true",
    "best_epoch": 2,
    "evaluation": {"protocol": "standard", "columns": 64, "burn_in": 512},
    "val": {"nll": 4.0, "ppl": 54.598150033144236, "num_tokens": 199},
    "test": {"nll": 3.5, "ppl": 33.11545195869231, "num_tokens": 199},
    "nt_asgd": {"triggered_epoch": None},
    "train": {"epochs": 3, "steps": 1234, "tokens": 24680},
    "environment": {"torch": "2.13.0", "device": "cpu (2 cores)"},
}


@pytest.fixture(scope="session")
def wikitext2_dir() -> Path:
    """The genuine WikiText-2, where it lies beside the project."""
    path = Path(__file__).resolve().parents[2] / "shared/data/wikitext-2"
    if not path.is_dir():
        pytest.skip("no WikiText-2 beside the project")
    return path


@pytest.fixture(scope="session")
def untrained_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes run directories with config, checkpoint and results; like overrides share one."""

    @cache
    def make(*overrides: str) -> Path:
        import torch
        from hydra import compose, initialize_config_dir
        from omegaconf import OmegaConf

        from lmbench import build
        from lmbench.callbacks.checkpoint_io import AtomicCheckpointIO
        from lmbench.config import conf_dir, write_run_config

        sizes = ["data.num_words=40", "model.embedding_size=8", "model.core.hidden_size=12"]
        sizes += [f"data.num_{split}_tokens=200" for split in ("train", "valid", "test")]
        sizes += ["batching.batch_size=4", "batching.bptt=5", "evaluation.columns=1"]
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            config = compose("train", ["data=synthetic", *sizes, *overrides])
        config = OmegaConf.masked_copy(config, [key for key in config if key != "resume"])
        corpus = build.corpus(config)
        build.seed_everything(config)
        module = build.module(config, build.model(config, len(corpus.vocabulary), corpus.train))
        with torch.no_grad():  # as far from the start as training would bring them
            for weight in module.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.5)
        dtypes = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
        module.to(dtypes.get(config.trainer.precision, torch.float32))
        run_dir = tmp_path_factory.mktemp("untrained")
        write_run_config(config, run_dir)
        of_data = build.datamodule(config, corpus).state_dict()
        checkpoint = {"state_dict": module.state_dict(), "LanguageModelDataModule": of_data}
        AtomicCheckpointIO().save_checkpoint(checkpoint, run_dir / "checkpoints/best.ckpt")
        results = RESULTS | {"model": config.model.name}
        results["num_parameters"] = module.model.num_parameters
        results["data"] = {
            "name": corpus.name,
            "vocabulary_size": len(corpus.vocabulary),
            "num_tokens": corpus.num_tokens,
            "sha256": corpus.sha256,
            "perplexity_floor": dict(corpus.perplexity_floor or {}),
        }
        (run_dir / "results.json").write_text(json.dumps(results), "utf-8")
        return run_dir

    return make


@pytest.fixture
def make_run(untrained_runs: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """The directory of an untrained run of 41 words, to be changed at will; takes overrides."""
    return lambda *overrides: Path(shutil.copytree(untrained_runs(*overrides), tmp_path / "run"))


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    """torch has one for the whole process."""
    import torch

    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
