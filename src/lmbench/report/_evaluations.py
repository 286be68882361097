"""What ``lmbench-evaluate`` left behind in a run's directory, read as untrusted input."""

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lmbench.errors import UserError
from lmbench.files import read_json
from lmbench.terminal.printing import printable

LARGEST_PERPLEXITY = 1e100
"""A run whose perplexity is above this has diverged; the perplexity's square may be infinite."""


class SplitScore(NamedTuple):
    """Nats per token, perplexity, and the number of scored targets of a split."""

    nll: float
    ppl: float
    num_tokens: int


@dataclass(frozen=True)
class Evaluation:
    """An ``evaluation-NAME-SPLIT.json``.

    Attributes:
        score: What it found.
        protocol: How the split was read; equal texts mean that it was read in the same way.
        is_tuned: Whether its settings were chosen on valid.
        records: The Parquet file with each target's log-probability; None if there is none.
    """

    score: SplitScore
    protocol: str
    is_tuned: bool
    records: Path | None


@dataclass(frozen=True)
class PairAccuracies:
    """A ``minimal_pairs-NAME.json``.

    Attributes:
        protocol: Which pairs were read and how, in the same words if both are the same.
        num_pairs: Number of all pairs.
        accuracies: (level, name) → share of the pairs that are correct: of ("", "all") and
            ("", "known words"), and of each field, phenomenon and paradigm.
        records: The Parquet file with a row for each pair; None if there is none.
    """

    protocol: str
    num_pairs: int
    accuracies: Mapping[tuple[str, str], float]
    records: Path | None


def read_evaluation(path: Path, results: Mapping[str, Any]) -> Evaluation:
    """Reads an ``evaluation-NAME-SPLIT.json`` of the run that has these results.

    Raises:
        UserError: The file is damaged, or of other weights.
    """
    values = read_json(path)
    with damage_named(path):
        _require_same_weights(path, values, results)
        records = path.with_suffix(".parquet")
        return Evaluation(
            score=score_of(values),
            protocol=protocol_text(values),
            is_tuned=values.get("tuned") is not None,
            records=records if records.is_file() else None,
        )


def read_pair_accuracies(path: Path, results: Mapping[str, Any]) -> PairAccuracies:
    """Reads a ``minimal_pairs-NAME.json`` of the run that has these results.

    Raises:
        UserError: The file is damaged, or of other weights.
    """
    values = read_json(path)
    with damage_named(path):
        _require_same_weights(path, values, results)
        num_pairs, of = int(values["num_pairs"]), values["pairs"]
        counts = {("", "known words"): values["parts"]["known"]}
        for level, rows in values["by"].items():
            counts |= {(printable(level), printable(row["name"])): row for row in rows}
        accuracies = {("", "all"): float(values["accuracy"])} | {
            place: float(row["accuracy"])
            for place, row in counts.items()
            if row["accuracy"] is not None
        }
        if not all(0 <= share <= 1 for share in accuracies.values()):
            raise ValueError("an accuracy is not between 0 and 1")
        how = f"tokenizer {of['tokenizer']}{', lower case' if of.get('lowercase') else ''}"
        how += ", without unknown punctuation" if of.get("drops_punctuation") else ""
        records = path.with_suffix(".parquet")
        return PairAccuracies(
            protocol=printable(f"{num_pairs:,} pairs {of['sha256'][:12]}, {how}"),
            num_pairs=num_pairs,
            accuracies=accuracies,
            records=records if records.is_file() else None,
        )


def _require_same_weights(
    path: Path, values: Mapping[str, Any], results: Mapping[str, Any]
) -> None:
    weights = {values.get("weights_sha256"), results.get("weights_sha256")}
    if values["corpus_sha256"] != results["data"]["sha256"] or len(weights - {None}) > 1:
        raise UserError(
            f"{path} is for a different corpus from the run's, or for weights that the run no "
            "longer has. Evaluate again, or remove it."
        )


def protocol_text(values: Mapping[str, Any]) -> str:
    """Describes the reading behind a file's scores, in the same words if it was the same.

    Tuned settings may differ from seed to seed and still belong to one recipe: instead of them, it
    says what they were tuned on.

    Args:
        values: The content of ``results.json`` or of an ``evaluation-NAME-SPLIT.json``.

    Raises:
        KeyError, TypeError, ValueError: The file is damaged.
    """
    settings, tuned = values["evaluation"], values.get("tuned") or {}
    words = {"protocol": "protocol", "columns": "columns", "burn_in": "burn-in"}
    parts = [f"{word} {_plain(settings[key])}" for key, word in words.items() if key in settings]
    modes = {k: x for k, x in settings.items() if x and k not in (*words, "name", "window")}
    if modes:  # some depend on the window; without them, it affects memory and time, not results
        parts.append(f"window {_plain(settings.get('window'))}")
    for name, mode in sorted(modes.items()):
        said = []
        if name in tuned:
            some = tuned.get("num_tokens")
            said.append(f"tuned on {f'the first {some:,} tokens of ' if some else ''}valid")
        tried = [row for row in tuned.get(name) or [] if isinstance(row, dict)]
        said += [
            f"{key} {_plain(value)}"
            for key, value in mode.items()
            if value is not None and value is not False
            # Not what tuning chose among several values.
            if all(row.get(key) == value for row in tried)
        ]
        parts.append(f"{name} ({', '.join(said)})")
    return printable(", ".join(parts))


def score_of(values: Mapping[str, Any]) -> SplitScore:
    """The score of a split, from the values of a file.

    Raises:
        KeyError, TypeError, ValueError: The file is damaged.
    """
    score = SplitScore(float(values["nll"]), float(values["ppl"]), int(values["num_tokens"]))
    if not (score.nll >= 0 and 1 <= score.ppl <= LARGEST_PERPLEXITY):
        raise ValueError(f"{score.ppl:g} cannot be the perplexity of a run, unless it diverged")
    return score


def _plain(value: Any) -> str:
    """A setting as text, the same for equal numbers such as 1 and 1.0; a dict is by split."""
    if isinstance(value, dict):
        return " and ".join(f"{_plain(item)} ({split})" for split, item in value.items())
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turns Python's exceptions at a damaged file into a UserError that names it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, csv.Error) as error:
        what = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is damaged: {what}. Copy it again, or run again.") from error
