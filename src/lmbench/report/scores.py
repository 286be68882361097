"""What a run has measured, from ``results.json`` and the files of lmbench-evaluate."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lmbench.errors import UserError
from lmbench.files import read_json
from lmbench.printing import printable
from lmbench.report.folders import field, optional_field
from lmbench.report.protocols import protocol_text
from lmbench.run.directory import as_override

SPLITS = MappingProxyType({"valid": "val", "test": "test"})
"""The splits that are scored, and what ``results.json`` calls them."""


@dataclass(frozen=True)
class Score:
    """What a split came to.

    Attributes:
        nll: Nats per token.
        ppl: Perplexity, the exponential of ``nll``.
        num_tokens: Targets scored.
    """

    nll: float
    ppl: float
    num_tokens: int


@dataclass(frozen=True)
class Evaluation:
    """An ``evaluation-NAME-SPLIT.json``.

    Attributes:
        score: What it found.
        protocol: How the split was read, by which settings: equal where it was read alike.
        is_mean: Whether its nats per token are the mean over the targets; published scores have
            another divisor.
        is_tuned: Whether its settings were chosen on valid.
        records: The Parquet file with each target's log-probability; None if there is none.
    """

    score: Score
    protocol: str
    is_mean: bool
    is_tuned: bool
    records: Path | None


class MeasuredScore(NamedTuple):
    """The score of one evaluation of a split.

    Attributes:
        split: "valid" or "test".
        evaluation: Name of the evaluation; empty for that of the training run.
        score: What it found.
        is_tuned: Whether the settings of the evaluation were chosen on valid.
    """

    split: str
    evaluation: str
    score: Score
    is_tuned: bool = False


def read_results(run_dir: Path) -> dict[str, Any]:
    """The ``results.json`` of a run.

    Raises:
        UserError: The run has not finished, or the file is damaged.
    """
    path = run_dir / "results.json"
    if not path.exists():
        raise UserError(
            "Did not finish: it has no results.json. To go on: lmbench-train "
            f"{printable(as_override('resume', run_dir))}"
        )
    return read_json(path)


def require_weights(run_dir: Path, results: dict[str, Any], weights_sha256: str) -> None:
    """Refuses weights of which ``results.json`` does not speak; one of an older lmbench names none.

    Args:
        run_dir: The run's directory.
        results: Its ``results.json``.
        weights_sha256: Hash of the run's best checkpoint.

    Raises:
        UserError: The results are of other weights.
    """
    path = run_dir / "results.json"
    if optional_field(results, "weights_sha256", str, path) not in (None, weights_sha256):
        raise UserError(
            f"{path} is of other weights than {run_dir / 'checkpoints/best.ckpt'}, so that its "
            "numbers do not belong to the model. Let the run come to its end, which tests the best "
            "checkpoint and writes the results anew: lmbench-train "
            f"{as_override('resume', run_dir)}"
        )


def read_scores(results: Mapping[str, Any], path: Path) -> dict[str, Score]:
    """The run's own scores by split; test is missing if it was not scored.

    Args:
        results: Content of ``results.json``.
        path: The file.

    Raises:
        UserError: The file is damaged.
    """
    return {
        split: _score(field(results, key, dict, path), path)
        for split, key in SPLITS.items()
        if split == "valid" or results.get(key) is not None
    }


def told_in_part(score: Score, split: str, num_tokens: int) -> str:
    """Says how little of a split was scored; empty where it was all or nearly all of it.

    Args:
        score: The split's score.
        split: The split's name.
        num_tokens: Tokens of the whole split, all of which but the first are targets.
    """
    num_targets = num_tokens - 1
    if score.num_tokens >= 0.99 * num_targets:  # the published protocol leaves out a few
        return ""
    return f"only {score.num_tokens:,} of the {num_targets:,} targets of {split}"


def evaluation_files(run_dir: Path) -> Iterator[tuple[Path, str, str]]:
    """Each ``evaluation-NAME-SPLIT.json`` of a run, with name and split, in the names' order."""
    for path in sorted(run_dir.glob("evaluation-*.json")):
        match = re.fullmatch(r"evaluation-(.+)-(valid|test)\.json", path.name)
        if match is not None:
            yield path, printable(match[1]), match[2]


def read_evaluation(path: Path, split: str, results: Mapping[str, Any]) -> Evaluation:
    """Reads one of them.

    Args:
        path: The file.
        split: The split that its name tells.
        results: Content of the run's ``results.json``.

    Raises:
        UserError: The file is damaged, or of another corpus, other weights or another split.
    """
    values = read_json(path)
    _require_same_weights(path, values, results)
    if field(values, "split", str, path) != split:
        raise UserError(f"{path} is of another split than its name says. Rename it.")
    records = path.with_suffix(".parquet")
    return Evaluation(
        score=_score(values, path),
        protocol=protocol_text(values, path),
        is_mean=optional_field(values, "evaluation.protocol", str, path) != "awd_lstm_lm",
        is_tuned=optional_field(values, "tuned", dict, path) is not None,
        records=records if records.is_file() else None,
    )


def measured_scores(run_dir: Path, results: Mapping[str, Any]) -> list[MeasuredScore]:
    """All scores of a run: the training run's own first, then those of lmbench-evaluate.

    Raises:
        UserError: A file is damaged, or does not belong to the run.
    """
    own = read_scores(results, run_dir / "results.json")
    scores = [MeasuredScore(split, "", score) for split, score in own.items()]
    for path, name, split in evaluation_files(run_dir):
        found = read_evaluation(path, split, results)
        scores.append(MeasuredScore(split, name, found.score, found.is_tuned))
    return scores


def _score(values: Mapping[str, Any], path: Path) -> Score:
    score = Score(
        field(values, "nll", float, path),
        field(values, "ppl", float, path),
        field(values, "num_tokens", int, path),
    )
    if score.nll < 0 or score.ppl < 1:
        raise UserError(f"{path} is damaged: no perplexity is below 1. Copy it anew, or run again.")
    return score


def _require_same_weights(
    path: Path, evaluation: Mapping[str, Any], results: Mapping[str, Any]
) -> None:
    """Refuses an evaluation of another corpus or, where both name them, of other weights."""
    path_of_results = path.with_name("results.json")
    corpus = field(results, "data.sha256", str, path_of_results)
    if optional_field(evaluation, "corpus_sha256", str, path) != corpus:
        raise UserError(
            f"{path} is of another corpus than the run, so that its numbers do not belong beside "
            "the run's. Take it away."
        )
    weights = {
        optional_field(evaluation, "weights_sha256", str, path),
        optional_field(results, "weights_sha256", str, path_of_results),
    }
    if len(weights - {None}) > 1:
        raise UserError(
            f"{path} is of other weights than the run's results.json: the run has gone on since. "
            "Evaluate it again with lmbench-evaluate."
        )
