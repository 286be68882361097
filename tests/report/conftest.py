"""Runs to compare, with and without per-token records."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmbench.report.groups import Section, group_runs
from lmbench.report.runs import read_runs

NUM_ARTICLES, LENGTH = 30, 40
HARDNESS = np.random.default_rng(0).gamma(2, 2, 1_200)


def _nats(shift: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.05, 1_200)
    return -np.maximum(HARDNESS + shift + noise, 0).astype(np.float32)


@pytest.fixture
def nats() -> Callable[[float, int], np.ndarray]:
    """Makes log-probabilities that differ from call to call only by a shift and some noise."""
    return _nats


@pytest.fixture
def write_records(write_evaluation: Callable[..., Path]) -> Callable[..., Path]:
    """Writes an evaluation with those log-probabilities, in articles of 40 tokens or longer."""

    def write(
        run_dir: Path,
        shift: float,
        seed: int,
        *,
        num_tokens: int = NUM_ARTICLES * LENGTH,
        num_articles: int = NUM_ARTICLES,
        **options: Any,
    ) -> Path:
        articles = np.arange(num_tokens) // (NUM_ARTICLES * LENGTH // num_articles)
        values = _nats(shift, seed)[:num_tokens]
        return write_evaluation(run_dir, log_probabilities=values, articles=articles, **options)

    return write


@pytest.fixture
def section_of() -> Callable[[Path], Section]:
    """Reads the runs in a folder, which are all on one corpus."""

    def read(folder: Path) -> Section:
        (section,) = group_runs(read_runs([(None, folder)])[0])[0]
        return section

    return read


@pytest.fixture
def three_models(
    tmp_path: Path, write_run: Callable[..., Path], write_records: Callable[..., Path]
) -> Path:
    """Two seeds each of three models: b is worse than a in every article, c as good as a."""
    for model, shift, valid in (("a", 0.0, 100.0), ("b", 0.1, 120.0), ("c", 0.0, 130.0)):
        for seed in (1, 2):
            run_dir = write_run(
                tmp_path / f"{model}{seed}",
                model=model,
                seed=seed,
                valid=valid + seed,
                test=valid * (1 + 0.01 * seed),
            )
            write_records(run_dir, shift, 100 * ord(model) + seed)
            (run_dir / "checkpoints").mkdir()
            (run_dir / "checkpoints/best.ckpt").touch()
    return tmp_path


@pytest.fixture
def section(
    tmp_path: Path, write_run: Callable[..., Path], write_evaluation: Callable[..., Path]
) -> Section:
    """Three seeds of one model, two of them evaluated with a cache, and one seed of another."""
    floor = {"data.perplexity_floor": {"valid": 101.5, "test": 99.25}}
    for seed, valid in enumerate((120.0, 121.0, 125.0)):
        results = floor | {
            "train.peak_memory_bytes": (seed + 1) * 2**29,
            "train.epochs": 3 + seed,
            "train.seconds": 60.0 * (seed + 1) ** 2,
            "train.tokens_per_second": 1000.0 * (1 + seed**2),
        }
        run_dir = write_run(
            tmp_path / f"a{seed}", seed=seed, valid=valid, test=valid - 10, results=results
        )
        if seed < 2:
            write_evaluation(run_dir, "cache", ppl=90.0 + seed)
    write_run(tmp_path / "b", model="awd_lstm", valid=200.0, test=None, results=floor)
    (found,) = group_runs(read_runs([(None, tmp_path)])[0])[0]
    return found
