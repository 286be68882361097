"""What runs left behind, read without torch."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lmbench.errors import UserError
from lmbench.printing import printable
from lmbench.report import folders
from lmbench.report.configs import read_config
from lmbench.report.curves import LARGEST_PERPLEXITY, Curve, read_curve
from lmbench.report.folders import LeftOut, find_run_dirs, optional_field
from lmbench.report.protocols import protocol_text
from lmbench.report.scores import (
    Evaluation,
    Score,
    evaluation_files,
    read_evaluation,
    read_results,
    read_scores,
    told_in_part,
)
from lmbench.run.directory import as_override


@dataclass(frozen=True)
class Corpus:
    """What a run was trained on; the same one where the content is the same.

    Attributes:
        name: Name of the corpus.
        sha256: Hash of its content.
        perplexity_floor: Split → perplexity of the true distribution, where that is known.
    """

    name: str = field(compare=False)
    sha256: str
    perplexity_floor: Mapping[str, float] = field(compare=False)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        run_dir: Its folder.
        config: Its resolved config, with what resumes have changed, by dotted keys.
        model: Name of the model.
        seed: The seed that it was trained with.
        num_parameters: The model's number of parameters.
        corpus: The corpus that it was trained on.
        protocol: How valid and test were read, and how much of them if not all.
        scores: Split → score of the best checkpoint; test is missing if it was not scored.
        num_epochs: Epochs that it trained; the last one may have been cut short.
        best_epoch: The one with the best validation, counted from 0.
        seconds: Wall-clock time of the fit.
        tokens_per_second: Median over training steps.
        peak_memory_bytes: Peak memory of the device or the process.
        device: The device that it ran on.
        curve: Its validations; None if they cannot be read.
        evaluations: (name, split) → what ``lmbench-evaluate`` found.
        left_out: Its files that cannot be read.
    """

    run_dir: Path
    config: Mapping[str, Any]
    model: str
    seed: int
    num_parameters: int
    corpus: Corpus
    protocol: str
    scores: Mapping[str, Score]
    num_epochs: float
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
        UserError: A path is no folder, or no run among them can be read.
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
        UserError: The run did not finish, or was trained on since; or its config or results
            are damaged.
    """
    path = run_dir / "results.json"
    config, results = read_config(run_dir), read_results(run_dir)
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
            num_epochs=value("train.epochs", float, path),
            num_steps=value("train.steps", int, path),
            num_tokens=optional("train.tokens", int, path),
            switch_epoch=optional("nt_asgd.triggered_epoch", int, path),
        )
    except UserError as error:
        left_out.append(LeftOut(run_dir, f"Counts, but without its curve. {error}"))
    if curve is not None and curve.goes_on:
        raise UserError(
            "Has been trained on since its results.json was written, which speaks of other weights "
            "than it has now. Let it finish: lmbench-train "
            f"{printable(as_override('resume', run_dir))}"
        )
    scores = read_scores(results, path)
    for score in scores.values():
        _require_no_divergence(score, path)
    return Run(
        run_dir=run_dir,
        config=config,
        model=printable(value("model", str, path)),
        seed=value("seed", int, path),
        num_parameters=value("num_parameters", int, path),
        corpus=corpus,
        protocol=", ".join([protocol_text(results, path), *_parts(results, scores, path)]),
        scores=scores,
        num_epochs=value("train.epochs", float, path),
        best_epoch=optional("best_epoch", int, path),
        seconds=optional("train.seconds", float, path),
        tokens_per_second=optional("train.tokens_per_second", float, path),
        peak_memory_bytes=optional("train.peak_memory_bytes", float, path),
        device=printable(optional("environment.device", str, path) or ""),
        curve=curve,
        evaluations=dict(_read_evaluations(run_dir, results, left_out)),
        left_out=tuple(left_out),
    )


def _parts(results: Mapping[str, Any], scores: Mapping[str, Score], path: Path) -> Iterator[str]:
    """The splits that were scored in part, as by ``trainer.limit_test_batches``."""
    for split, score in scores.items():
        num_tokens = optional_field(results, f"data.num_tokens.{split}", int, path)
        if num_tokens is not None and (part := told_in_part(score, split, num_tokens)):
            yield part


def _read_evaluations(
    run_dir: Path, results: Mapping[str, Any], left_out: list[LeftOut]
) -> Iterator[tuple[tuple[str, str], Evaluation]]:
    for path, name, split in evaluation_files(run_dir):
        try:
            evaluation = read_evaluation(path, split, results)
            _require_no_divergence(evaluation.score, path)
        except UserError as error:
            left_out.append(LeftOut(path, f"This evaluation is left out. {error}"))
            continue
        yield (name, split), evaluation


def _require_no_divergence(score: Score, path: Path) -> None:
    if score.ppl > LARGEST_PERPLEXITY:
        raise UserError(f"{path}: a perplexity of {score.ppl:.0e} is that of a run that diverged.")
