"""Fixtures that make run directories without training; turns on shape checks of signatures."""

import json
import logging
import math
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import install_import_hook
from omegaconf import OmegaConf

SHA = "ab" * 32

if hasattr(signal, "SIGHUP"):  # otherwise commands started here ignore it under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The first two make rich take anything for a terminal; the last one asks for tracebacks.
for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "HYDRA_FULL_ERROR"):
    os.environ.pop(name, None)

# An int is accepted where a float is annotated (PEP 484), as everywhere in Python.
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


@pytest.fixture(autouse=True)
def _hooks_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores what a command sets for its whole process: with these hooks, pytest finds errors."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)


@pytest.fixture(scope="session")
def wikitext2_dir() -> Path:
    """The original WikiText-2, where commands would find it."""
    folder = os.environ.get("LMBENCH_DATA_DIR")
    if folder is None or not Path(folder, "wikitext-2").is_dir():
        pytest.skip("There is no WikiText-2 in $LMBENCH_DATA_DIR.")
    return Path(folder, "wikitext-2")


@pytest.fixture(scope="session")
def untrained_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes run directories with config, checkpoint and results; equal overrides share one."""

    @cache
    def make(*overrides: str) -> Path:
        import torch
        from small import SMALL, config_of

        from lmbench.callbacks.checkpoints import CheckpointIO
        from lmbench.instantiate import training as build
        from lmbench.instantiate.arguments import factory
        from lmbench.instantiate.model import build_model
        from lmbench.run.config import write_run_config

        sizes = [f"data.num_{split}_tokens=200" for split in ("train", "valid", "test")]
        config = config_of(*SMALL, *sizes, "evaluation.columns=1", *overrides)
        corpus = factory(config["data"], "data")()
        build.seed_everything(config)
        model = build_model(config["model"], len(corpus.vocabulary), corpus.train)
        module = build.module(config, model)
        with torch.no_grad():  # as far from their initial values as training would move them
            for weight in module.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.5)
        dtypes = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
        module.to(dtypes.get(config["trainer"]["precision"], torch.float32))
        run_dir = tmp_path_factory.mktemp("untrained")
        write_run_config(config, run_dir)
        of_data = build.datamodule(config, corpus).state_dict()
        checkpoint = {"state_dict": module.state_dict(), "LanguageModelDataModule": of_data}
        CheckpointIO().save_checkpoint(checkpoint, run_dir / "checkpoints/best.ckpt")
        results = RESULTS | {"model": config["model"]["name"]}
        results["num_parameters"] = module.model.num_parameters
        results["weights_sha256"] = module.model.weights_sha256()
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
    """Makes the directory of an untrained run of 41 words, free to be changed; takes overrides."""
    return lambda *overrides: Path(shutil.copytree(untrained_runs(*overrides), tmp_path / "run"))


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    """Restores the matmul precision, a setting of the whole process."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture
def full_stdout() -> Callable[[], AbstractContextManager[None]]:
    """Redirects stdout to /dev/full; enter it in the test, where pytest leaves stdout alone."""

    @contextmanager
    def redirected() -> Iterator[None]:
        full = Path("/dev/full")
        if not full.exists():
            pytest.skip("no /dev/full, which is Linux's")
        with full.open("w") as file, redirect_stdout(file):
            yield

    return redirected


def _write_run(
    run_dir: Path,
    *,
    seed: int = 1,
    model: str = "lstm",
    valid: float = 120.0,
    test: float | None = 110.0,
    config: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    curve: list[float] | None = None,
    with_seconds: bool = True,
) -> Path:
    """A finished run, as lmbench writes it; ``config`` and ``results`` have dotted keys."""
    run_dir.mkdir(parents=True)
    full = OmegaConf.create(
        {
            "seed": seed,
            "init_from": None,
            "data": {"_target_": "lmbench.data.corpus.load_text", "path": None, "cache_dir": None},
            "model": {"name": model, "core": {"hidden_size": 200, "dropout": 0.2}},
            "optimizer": {"lr": 30.0, "betas": [0.9, 0.99], "weight_decay": 1.2e-6},
            "trainer": {"max_epochs": 3},
        }
    )
    for key, value in (config or {}).items():
        OmegaConf.update(full, key, value, force_add=True)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(full, resolve=True))

    perplexities = curve or [4 * valid, 2 * valid, valid]
    num_epochs = len(perplexities)
    outcome = OmegaConf.create(
        {
            "model": model,
            "num_parameters": 1_234_567,
            "seed": seed,
            "data": {"name": "text", "sha256": SHA},
            "best_epoch": num_epochs - 1,
            "evaluation": {"protocol": "standard", "columns": 64, "burn_in": 512},
            "val": {"nll": math.log(valid), "ppl": valid, "num_tokens": 99},
            "test": test and {"nll": math.log(test), "ppl": test, "num_tokens": 99},
            "nt_asgd": {"triggered_epoch": None},
            "train": {
                "epochs": num_epochs,
                "steps": 10 * num_epochs,
                "tokens": 7_000 * num_epochs,
                "seconds": 90.0,
                "tokens_per_second": 1000.0,
                "peak_memory_bytes": 2**30,
            },
            "environment": {"device": "cpu (2 cores)"},
        }
    )
    for key, value in (results or {}).items():
        OmegaConf.update(outcome, key, value, force_add=True)
    (run_dir / "results.json").write_text(json.dumps(OmegaConf.to_container(outcome)))

    metrics = ["step,epoch,train/nll,val/nll,val/ppl"]
    timing = ["step,epoch,train/tokens_per_second" + (",train/seconds" if with_seconds else "")]
    for epoch, ppl in enumerate(perplexities):
        step = 10 * epoch + 9
        metrics += [f"{step - 2},{epoch},5.0,,", f"{step},{epoch},,{math.log(ppl)!r},{ppl!r}"]
        timing += [f"{step - 2},{epoch},1000.0" + ("," if with_seconds else "")]
        timing += [f"{step},{epoch},,{30.0 * (epoch + 1)}"] if with_seconds else []
    (run_dir / "metrics.csv").write_text("\n".join(metrics) + "\n")
    (run_dir / "timing.csv").write_text("\n".join(timing) + "\n")
    return run_dir


def _write_evaluation(
    run_dir: Path,
    name: str = "standard",
    split: str = "test",
    *,
    ppl: float | None = None,
    log_probabilities: np.ndarray | None = None,
    articles: np.ndarray | None = None,
    columns: int = 64,
    settings: dict[str, Any] | None = None,
    tuned: dict[str, Any] | None = None,
    sha256: str = SHA,
    num_tokens: int | None = None,
) -> Path:
    """An ``evaluation-NAME-SPLIT.json``, with its records if log-probabilities are given."""
    path = run_dir / f"evaluation-{name}-{split}.json"
    if log_probabilities is not None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        size = len(log_probabilities)
        table = {
            "position": pa.array(np.arange(1, size + 1), pa.int64()),
            "target": pa.array(np.arange(size) % 7, pa.int32()),
            "log_probability": pa.array(log_probabilities.astype(np.float32)),
            "article": pa.array([None] * size if articles is None else articles, pa.int32()),
        }
        pq.write_table(pa.table(table), path.with_suffix(".parquet"))
        ppl = ppl or float(np.exp(-log_probabilities.mean(dtype="f8")))
        num_tokens = num_tokens or size
    assert ppl is not None
    how = {"name": name, "protocol": "standard", "columns": columns, "burn_in": 512, "window": 70}
    values = {
        "corpus_sha256": sha256,
        "split": split,
        "evaluation": how | (settings or {}),
        "tuned": tuned,
        "nll": math.log(ppl),
        "ppl": ppl,
        "num_tokens": num_tokens or 99,
    }
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def write_run() -> Callable[..., Path]:
    return _write_run


@pytest.fixture
def write_evaluation() -> Callable[..., Path]:
    return _write_evaluation


def _write_pairs(
    run_dir: Path, correct: np.ndarray, *, name: str = "set", known: float = 0.5, **changes: Any
) -> Path:
    """A ``minimal_pairs-NAME.json`` with its records: paradigms of 20 pairs, all of one field."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = run_dir / f"minimal_pairs-{name}.json"
    paradigms = [f"p{place // 20:02}" for place in range(len(correct))]
    pq.write_table(
        pa.table({"paradigm": paradigms, "correct": correct.astype(bool)}),
        path.with_suffix(".parquet"),
    )

    def rows(names: list[str]) -> list[dict[str, Any]]:
        array = np.array(names)
        return [{"name": x, "accuracy": correct[array == x].mean()} for x in sorted(set(names))]

    size = len(correct)
    values = {
        "corpus_sha256": SHA,
        "pairs": {
            "name": name,
            "sha256": "0" * 64,
            "tokenizer": "moses",
            "lowercase": False,
            "drops_punctuation": False,
        },
        "num_pairs": size,
        "accuracy": correct.mean(),
        "parts": {"known": {"accuracy": known}},
        "by": {
            "field": rows(["syntax"] * size),
            "phenomenon": rows([f"x{int(p[1:]) % 3}" for p in paradigms]),
            "paradigm": rows(paradigms),
        },
    }
    path.write_text(json.dumps(values | changes))
    return path


@pytest.fixture
def write_pairs() -> Callable[..., Path]:
    return _write_pairs
