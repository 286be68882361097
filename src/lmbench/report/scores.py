"""What a run has measured, from ``results.json`` and the files of lmbench-evaluate."""

from pathlib import Path
from typing import Any, NamedTuple

from lmbench.errors import UserError
from lmbench.report.folders import read_json, require_same_weights


class MeasuredScore(NamedTuple):
    """The score of one evaluation of a split."""

    split: str
    """``"valid"`` or ``"test"``."""
    evaluation: str
    """Name of the evaluation; empty for that of the training run."""
    ppl: float
    """Perplexity."""
    nll: float
    """Nats per token."""
    num_tokens: int
    """Number of scored targets."""


def read_results(run_dir: Path) -> dict[str, Any]:
    """The ``results.json`` of a run.

    Raises:
        UserError: the run has not finished, or the file is damaged.
    """
    path = run_dir / "results.json"
    if not path.is_file():
        raise UserError(
            f"{run_dir} has no results.json: the run has not come to its end. Go on with "
            f"lmbench-train resume={run_dir}"
        )
    return read_json(path)


def measured_scores(run_dir: Path) -> list[MeasuredScore]:
    """All scores of a run: the training run's own first, then those of lmbench-evaluate.

    Raises:
        UserError: the run has not finished; a file is damaged, or of another corpus.
    """
    results = read_results(run_dir)
    scores, path = [], run_dir / "results.json"
    try:
        for split, key in (("valid", "val"), ("test", "test")):
            if results[key] is not None:
                scores.append(_score(split, "", results[key]))
        for path in sorted(run_dir.glob("evaluation-*.json")):
            evaluation = read_json(path)
            require_same_weights(path, evaluation, results)
            name = evaluation["evaluation"]["name"]
            scores.append(_score(evaluation["split"], name, evaluation))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}.") from error
    return scores


def _score(split: str, evaluation: str, numbers: dict[str, Any]) -> MeasuredScore:
    ppl, nll, num_tokens = (numbers[key] for key in ("ppl", "nll", "num_tokens"))
    return MeasuredScore(str(split), str(evaluation), float(ppl), float(nll), int(num_tokens))
