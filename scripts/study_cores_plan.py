"""What the study of cores runs: its sizes, its tuning and its final runs (docs/cores.md)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmbench.files import read_json
from lmbench.run.directory import DIVERGED

GENERATION = "generation.json"
"""File in the folder of a run: how long its model takes to draw a word."""

LRS = (0.0015, 0.003, 0.006, 0.012, 0.024)
NUM_WHOLE_LRS = 3
"""The best learning rates of the short runs that are tried in whole ones: see docs/cores.md."""

SPEED_ROUNDS = 3
"""Times that the speed of each core is measured, in turns."""

DROPOUTS = {
    "model.embedding_dropout": 0.05,
    "model.core.input_dropout": 0.3,
    "model.core.hidden_dropout": 0.2,
    "model.core.output_dropout": 0.3,
    "model.core.weight_dropout": 0.25,
}
OF_CORE = {
    "lstm": {  # ordinary dropout alone, without AR and TAR
        "model/core": "awd_lstm",
        "model.embedding_dropout": 0.0,
        "model.core.weight_dropout": 0.0,
        "model.core.locked_dropout": "false",
        "loss.ar_alpha": 0.0,
        "loss.tar_beta": 0.0,
    },
}


class Corpus(NamedTuple):
    """A corpus of the study.

    Attributes:
        experiment: The experiment that all runs share.
        seeds: Seeds of the final runs; the tuning has seed 1.
        dropout_factors: What all dropouts are multiplied by; the first while the rate is tuned.
        short: What shortens the first runs, of all learning rates.
        sizes: Core → ``hidden_size`` with which all have about the same number of parameters.
        options: Core → what else it needs at this size.
    """

    experiment: str
    seeds: Sequence[int]
    dropout_factors: Sequence[float]
    short: Mapping[str, Any]
    sizes: Mapping[str, int]
    options: Mapping[str, Mapping[str, Any]]


CORPORA = {
    "wikitext2": Corpus(
        "cores",
        (2, 3, 4),
        (0.25, 0.125),
        {"trainer.limit_train_batches": 0.2, "batching.shuffle_articles": "false"},
        {
            "lstm": 600,
            "awd_lstm": 600,
            "gru": 720,
            "qrnn": 1064,
            "mogrifier_lstm": 528,
            "min_gru": 312,
            "min_lstm": 296,
            "mlstm": 440,
            "slstm": 448,
            "hgrn2": 320,
            "gated_delta_net": 296,
        },
        {"hgrn2": {"model.core.num_heads": 2}},
    ),
    "synthetic": Corpus(
        "cores_synthetic",
        (2, 3, 4, 5, 6),
        (0.5, 0.25, 1.0),
        {},
        {
            "lstm": 198,
            "awd_lstm": 198,
            "gru": 244,
            "qrnn": 297,
            "mogrifier_lstm": 164,
            "min_gru": 115,
            "min_lstm": 109,
            "mlstm": 160,
            "slstm": 164,
            "hgrn2": 118,
            "gated_delta_net": 108,
        },
        {
            "mogrifier_lstm": {"model.core.rank": 24},
            "mlstm": {"model.core.num_heads": 2},
            "hgrn2": {"model.core.num_heads": 2},
        },
    ),
}


class Job(NamedTuple):
    """A run: its folder, the overrides of lmbench-train, and whether its weights stay there."""

    folder: Path
    overrides: Mapping[str, Any]
    keeps_weights: bool = True


def job_of(
    root: Path,
    corpus: str,
    core: str,
    *,
    lr: float,
    factor: float,
    seed: int | None = None,
    short: bool = False,
) -> Job:
    """A run of the study: a tuning run or, with ``seed=``, a final one."""
    setting = CORPORA[corpus]
    dropouts = {key: round(value * factor, 6) for key, value in DROPOUTS.items()}
    overrides = {
        "experiment": setting.experiment,
        "name": core,
        "model/core": core,
        "model.core.hidden_size": setting.sizes[core],
        "optimizer.lr": lr,
        **dropouts,
        **OF_CORE.get(core, {}),
        **setting.options.get(core, {}),
    }
    name = f"lr_{lr}_dropout_{factor}"
    if seed is not None:
        folder = root / corpus / "seeds" / f"{core}_{name}" / f"seed_{seed}"
        return Job(folder, {**overrides, "seed": seed})
    overrides |= {"seed": 1, "trainer.limit_test_batches": 0}
    if short and setting.short:
        overrides |= setting.short
        name = f"{name}_short"
    return Job(root / corpus / "tuning" / core / name, overrides, keeps_weights=False)


def valid_perplexity(job: Job) -> float | None:
    """What a run reached on valid, infinity if it diverged; None if it has not finished."""
    if (job.folder / DIVERGED).exists():
        return math.inf
    path = job.folder / "results.json"
    return read_json(path)["val"]["ppl"] if path.exists() else None


def best_of(jobs: Mapping[Any, Job]) -> list[Any]:
    """The settings, the best on valid first, without diverged ones; none until all have ended."""
    found = {setting: valid_perplexity(job) for setting, job in jobs.items()}
    if None in found.values():
        return []
    scores = {setting: ppl for setting, ppl in found.items() if ppl and ppl < math.inf}
    return sorted(scores, key=scores.__getitem__)


def trials_of_lr(root: Path, corpus: str, core: str) -> dict[float, Job]:
    """The first runs of the tuning: short ones on WikiText-2."""
    factor = CORPORA[corpus].dropout_factors[0]
    return {lr: job_of(root, corpus, core, lr=lr, factor=factor, short=True) for lr in LRS}


def whole_trials_of_lr(root: Path, corpus: str, core: str) -> dict[float, Job]:
    """Whole runs of the best rates: short ones may favour a rate that is too large later on."""
    factor = CORPORA[corpus].dropout_factors[0]
    lrs = best_of(trials_of_lr(root, corpus, core))[:NUM_WHOLE_LRS]
    return {lr: job_of(root, corpus, core, lr=lr, factor=factor) for lr in lrs}


def trials_of_dropout(root: Path, corpus: str, core: str) -> dict[float, Job]:
    """Whole runs with the best rate; short ones would choose too much: docs/trials.md."""
    lrs = best_of(whole_trials_of_lr(root, corpus, core))
    factors = CORPORA[corpus].dropout_factors if lrs else ()
    return {factor: job_of(root, corpus, core, lr=lrs[0], factor=factor) for factor in factors}


def final_runs(root: Path, corpus: str, core: str) -> list[Job]:
    """The runs with several seeds, once the tuning has ended."""
    trials = trials_of_dropout(root, corpus, core)
    return [
        job_of(
            root,
            corpus,
            core,
            lr=trials[factor].overrides["optimizer.lr"],
            factor=factor,
            seed=seed,
        )
        for factor in best_of(trials)[:1]
        for seed in CORPORA[corpus].seeds
    ]


def speed_runs(root: Path, corpus: str, core: str) -> list[Job]:
    """Runs of 60 steps, whose speed is measured with nothing beside them."""
    overrides = {
        **job_of(root, corpus, core, lr=LRS[0], factor=1.0).overrides,
        "trainer.limit_train_batches": 60,
        "trainer.limit_val_batches": 1,
        "trainer.max_epochs": 1,
    }
    folder = root / corpus / "speed" / core
    return [Job(folder / f"round_{number}", overrides) for number in range(1, SPEED_ROUNDS + 1)]
