"""What runs left behind, read without torch."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lmbench.errors import UserError
from lmbench.report import folders
from lmbench.report.configs import read_config
from lmbench.report.curves import LARGEST_PERPLEXITY, Curve, read_curve
from lmbench.report.folders import (
    LeftOut,
    find_run_dirs,
    optional_field,
    printable,
    read_json,
    require_same_weights,
)

SPLITS = MappingProxyType({"valid": "val", "test": "test"})
"""The splits that are scored, and what ``results.json`` calls them."""


@dataclass(frozen=True)
class Score:
    """Nats per token, and its exponential, over a whole split."""

    nll: float
    ppl: float


@dataclass(frozen=True)
class Corpus:
    """What a run was trained on; the same one where the content is the same.

    Attributes:
        name: of the corpus.
        sha256: of its content.
        perplexity_floor: split → perplexity of the true distribution, where that is known.
    """

    name: str = field(compare=False)
    sha256: str
    perplexity_floor: Mapping[str, float] = field(compare=False)


@dataclass(frozen=True)
class Evaluation:
    """An ``evaluation-NAME-SPLIT.json``.

    Attributes:
        score: what it found.
        protocol: how the split was read.
        num_tokens: targets scored.
        records: the Parquet file with each target's log-probability; None if there is none.
    """

    score: Score
    protocol: str
    num_tokens: int
    records: Path | None


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        run_dir: its folder.
        config: its resolved config, with what resumes have changed, by dotted keys.
        model: name of the model.
        seed: that it was trained with.
        num_parameters: of the model.
        corpus: that it was trained on.
        protocol: how valid and test were read.
        scores: split → score of the best checkpoint; test is missing if it was not scored.
        num_epochs: that it trained.
        best_epoch: the one with the best validation, counted from 0.
        seconds: wall-clock time of the fit.
        tokens_per_second: median over training steps.
        peak_memory_bytes: of the device or the process.
        device: that it ran on.
        curve: its validations; None if they cannot be read.
        evaluations: (name, split) → what ``lmbench-evaluate`` found.
        left_out: its files that cannot be read.
    """

    run_dir: Path
    config: Mapping[str, Any]
    model: str
    seed: int
    num_parameters: int
    corpus: Corpus
    protocol: str
    scores: Mapping[str, Score]
    num_epochs: int
    best_epoch: int | None
    seconds: float | None
    tokens_per_second: float | None
    peak_memory_bytes: float | None
    device: str
    curve: Curve | None
    evaluations: Mapping[tuple[str, str], Evaluation]
    left_out: tuple[LeftOut, ...]


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[LeftOut]]:
    """The finished runs at or under some folders, and what was found there besides.

    Raises:
        UserError: a path is no folder, or no run among them can be read.
    """
    run_dirs, left_out = find_run_dirs(paths)
    runs: list[Run] = []
    for run_dir in run_dirs:
        try:
            runs.append(read_run(run_dir))
            left_out += runs[-1].left_out
        except UserError as error:
            left_out.append(LeftOut(run_dir, str(error)))
        except OSError as error:
            left_out.append(LeftOut(run_dir, f"Cannot be read: {error}."))
    if not runs:
        reasons = " ".join(f"{item.path}: {item.reason}" for item in left_out[:3])
        more = f" And {len(left_out) - 3:,} more." if len(left_out) > 3 else ""
        raise UserError(f"There is no finished run to compare. {reasons}{more}")
    return runs, left_out


def read_run(run_dir: Path) -> Run:
    """Reads one finished run.

    Raises:
        UserError: it did not finish, or has been trained on since it did; or its config or results
            are damaged.
    """
    path = run_dir / "results.json"
    config = read_config(run_dir)
    if not path.exists():
        raise UserError(
            "Did not finish: it has no results.json. To go on: lmbench-train resume=RUN_DIR"
        )
    results = read_json(path)
    value, optional = partial(folders.field, results), partial(optional_field, results)
    floor = optional("data.perplexity_floor", dict, path) or {}
    corpus = Corpus(
        name=printable(value("data.name", str, path)),
        sha256=printable(value("data.sha256", str, path)),
        perplexity_floor={split: folders.field(floor, split, float, path) for split in floor},
    )
    left_out: list[LeftOut] = []
    curve = None
    try:
        curve = read_curve(
            run_dir,
            num_epochs=value("train.epochs", int, path),
            num_steps=value("train.steps", int, path),
            num_tokens=optional("train.tokens", int, path),
            switch_epoch=optional("nt_asgd.triggered_epoch", int, path),
        )
    except UserError as error:
        left_out.append(LeftOut(run_dir, f"Counts, but without its curve. {error}"))
    if curve is not None and curve.goes_on:
        raise UserError(
            "Has been trained on since its results.json was written, which speaks of other weights "
            f"than it has now. Let it finish: lmbench-train resume={printable(str(run_dir))}"
        )
    return Run(
        run_dir=run_dir,
        config=config,
        model=printable(value("model", str, path)),
        seed=value("seed", int, path),
        num_parameters=value("num_parameters", int, path),
        corpus=corpus,
        protocol=_protocol(value("evaluation", dict, path)),
        scores={
            split: _read_score(value(key, dict, path), path)
            for split, key in SPLITS.items()
            if split == "valid" or results.get(key) is not None
        },
        num_epochs=value("train.epochs", int, path),
        best_epoch=optional("best_epoch", int, path),
        seconds=optional("train.seconds", float, path),
        tokens_per_second=optional("train.tokens_per_second", float, path),
        peak_memory_bytes=optional("train.peak_memory_bytes", float, path),
        device=printable(optional("environment.device", str, path) or ""),
        curve=curve,
        evaluations=dict(_read_evaluations(run_dir, results, left_out)),
        left_out=tuple(left_out),
    )


def _read_score(values: dict[str, Any], path: Path) -> Score:
    score = Score(
        folders.field(values, "nll", float, path), folders.field(values, "ppl", float, path)
    )
    if score.nll < 0 or score.ppl < 1:
        raise UserError(f"{path} is damaged: no perplexity is below 1. Copy it anew, or run again.")
    if score.ppl > LARGEST_PERPLEXITY:
        raise UserError(f"{path}: a perplexity of {score.ppl:.0e} is that of a run that diverged.")
    return score


def _read_evaluations(
    run_dir: Path, results: Mapping[str, Any], left_out: list[LeftOut]
) -> Iterator[tuple[tuple[str, str], Evaluation]]:
    for path in sorted(run_dir.glob("evaluation-*.json")):
        match = re.fullmatch(r"evaluation-(.+)-(valid|test)\.json", path.name)
        if match is None:
            continue
        try:
            values = read_json(path)
            require_same_weights(path, values, results)
            records = path.with_suffix(".parquet")
            evaluation = Evaluation(
                score=_read_score(values, path),
                protocol=_protocol(folders.field(values, "evaluation", dict, path)),
                num_tokens=folders.field(values, "num_tokens", int, path),
                records=records if records.is_file() else None,
            )
        except UserError as error:
            left_out.append(LeftOut(path, f"This evaluation is left out. {error}"))
            continue
        yield (printable(match[1]), match[2]), evaluation


def _protocol(evaluation: dict[str, Any]) -> str:
    """How a split was read, in words that are equal where it was read alike."""
    names = {"protocol": "protocol", "columns": "columns", "burn_in": "burn-in"}
    said = (
        f"{words} {_words(evaluation[key])}" for key, words in names.items() if key in evaluation
    )
    return printable(", ".join(said))


def _words(value: Any) -> str:
    if isinstance(value, dict):  # split → value
        return " and ".join(f"{_words(item)} ({key})" for key, item in value.items())
    return str(value)
