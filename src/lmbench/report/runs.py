"""What runs left behind, read without torch and as if it came from strangers."""

import csv
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lmbench.conf import flatten
from lmbench.errors import UserError
from lmbench.files import read_json, read_small, read_yaml
from lmbench.printing import printable
from lmbench.run.directory import as_override, is_run

SPLITS = {"valid": "val", "test": "test"}
"""The splits that are scored, and what ``results.json`` calls them."""

LARGEST_PERPLEXITY = 1e100
"""A perplexity above this is that of a run that diverged, and its square need not be finite."""


@dataclass(frozen=True)
class Skipped:
    """What was found and does not count.

    Attributes:
        path: The run's folder, or the file in it.
        reason: What was wrong, and what to do.
    """

    path: Path
    reason: str


class Score(NamedTuple):
    """Nats per token, perplexity, and the number of scored targets of a split."""

    nll: float
    ppl: float
    num_tokens: int


@dataclass(frozen=True)
class Corpus:
    """What a run was trained on; two are equal where their content is.

    Attributes:
        name: Name of the corpus.
        sha256: Hash of its content.
        perplexity_floor: Split → perplexity of the true distribution, where that is known.
    """

    name: str = field(compare=False)
    sha256: str
    perplexity_floor: Mapping[str, float] = field(compare=False, default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """An ``evaluation-NAME-SPLIT.json``.

    Attributes:
        score: What it found.
        protocol: How the split was read, in words that are equal where it was read alike.
        is_tuned: Whether its settings were chosen on valid.
        records: The Parquet file with each target's log-probability; None if there is none.
    """

    score: Score
    protocol: str
    is_tuned: bool
    records: Path | None


@dataclass(frozen=True)
class PairAccuracies:
    """A ``minimal_pairs-NAME.json``.

    Attributes:
        protocol: Which pairs were read and how, in words that are equal where it was alike.
        num_pairs: Number of all pairs.
        accuracies: (level, name) → share of the pairs that are correct: of ("", "all") and
            ("", "known words"), and of each field, phenomenon and paradigm.
        records: The Parquet file with a row for each pair; None if there is none.
    """

    protocol: str
    num_pairs: int
    accuracies: Mapping[tuple[str, str], float]
    records: Path | None


@dataclass(frozen=True)
class Curve:
    """The validations of a run, in their order.

    Attributes:
        epochs: Passes over the training stream at each of them.
        minutes: Wall-clock time of the fit at each; None if the run has not recorded it.
        perplexities: Those of valid; nan where the run had diverged.
        switch: Index of the validation that the switch to averaged SGD followed, if there was one.
    """

    epochs: tuple[float, ...]
    minutes: tuple[float, ...] | None
    perplexities: tuple[float, ...]
    switch: int | None


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        run_dir: Its folder.
        name: What its group is called.
        config: Its config by dotted keys.
        results: Its ``results.json``.
        model: Name of the model.
        seed: The seed that it was trained with.
        corpus: The corpus that it was trained on.
        protocol: How valid and test were read, and how much of them if not all.
        scores: Split → score of the best checkpoint; test is missing if it was not scored.
        curve: Its validations; None if they cannot be read.
        evaluations: (name, split) → what ``lmbench-evaluate`` found.
        minimal_pairs: Name of a set of pairs → what it found of these.
        skipped: Its files that cannot be read.
    """

    run_dir: Path
    name: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    model: str
    seed: int
    corpus: Corpus
    protocol: str
    scores: Mapping[str, Score]
    curve: Curve | None
    evaluations: Mapping[tuple[str, str], Evaluation]
    minimal_pairs: Mapping[str, PairAccuracies] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()

    @property
    def is_ensemble(self) -> bool:
        """Whether it was mixed of other runs, and not trained."""
        return "ensemble" in self.config

    def number(self, *keys: str) -> float | None:
        """A number of ``results.json`` by its keys; None where it is missing or not a number."""
        value: Any = self.results
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number and abs(value) < LARGEST_PERPLEXITY else None


def read_runs(paths: Iterable[tuple[str | None, Path]]) -> tuple[list[Run], list[Skipped]]:
    """The finished runs at or under some folders, and what was found there besides.

    Args:
        paths: The folders, each with a name for its runs; None for their own.

    Raises:
        UserError: A path is not a folder, or no run among them can be read.
    """
    skipped: list[Skipped] = []
    named: dict[Path, tuple[str | None, Path]] = {}
    for name, folder in paths:
        for run_dir in find_run_dirs(folder, skipped):
            named.setdefault(run_dir.resolve(), (name, run_dir))
    runs: list[Run] = []
    for name, run_dir in named.values():
        try:
            runs.append(read_run(run_dir, name))
            skipped += runs[-1].skipped
        except (UserError, OSError, RecursionError) as error:
            skipped.append(Skipped(run_dir, str(error)))
    if not runs:
        reasons = " ".join(f"{item.path}: {item.reason}" for item in skipped[:3])
        raise UserError(f"There is no finished run to compare. {reasons}")
    return runs, skipped


def find_run_dirs(folder: Path, skipped: list[Skipped]) -> list[Path]:
    """The run directories at or under a folder, jobs of a sweep in the order of their numbers.

    A run directory holds ``config.yaml`` or ``results.json``, or at least Hydra's own ``.hydra``:
    then the run failed before it began.

    Args:
        folder: Where to look.
        skipped: Gets what cannot be looked at, and links.

    Raises:
        UserError: It is not a folder.
    """

    def unreadable(error: OSError) -> None:
        skipped.append(Skipped(Path(error.filename), f"Cannot be read: {error.strerror}."))

    if not os.path.isdir(folder):  # noqa: PTH112 - Path's raises at a name that is too long
        raise UserError(f"{folder} is not a folder. Name run directories, or folders of them.")
    found = []
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        if "config.yaml" in files or "results.json" in files or ".hydra" in folders:
            found.append(Path(parent))
            # The rest may hold runs too, as where a sweep was put into the folder of a run.
            folders[:] = [name for name in folders if name not in ("checkpoints", "wandb")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in (path for name in folders if (path := Path(parent, name)).is_symlink()):
            if not link.resolve().is_relative_to(folder.resolve()):  # as "latest" is
                skipped.append(Skipped(link, "Is a link, and is not followed: name it itself."))
    if not found:
        skipped.append(Skipped(folder, "Holds no run."))
    return sorted(found, key=_by_number)


def _by_number(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read_run(run_dir: Path, name: str | None = None) -> Run:
    """Reads one finished run.

    Args:
        run_dir: Its folder.
        name: What its group is called; None for the name in its config, else that of its model.

    Raises:
        UserError: The run has not finished, or its config or results are damaged.
    """
    path = run_dir / "results.json"
    if not path.exists():
        if not is_run(run_dir):
            raise UserError("It failed before it began: no config.yaml, no results.json.")
        how = printable(as_override("resume", run_dir))
        raise UserError(f"Did not finish: it has no results.json. To resume: lmbench-train {how}")
    config = {printable(k): x for k, x in flatten(read_yaml(run_dir / "config.yaml")).items()}
    results, skipped = read_json(path), []
    if not config:
        raise UserError(f"{run_dir / 'config.yaml'} is empty. Copy it again.")

    def unless_damaged(read: Callable[..., Any], path: Path, *args: Any) -> Any:
        try:
            return read(path, *args)
        except (UserError, OSError, RecursionError) as error:
            skipped.append(Skipped(path, f"The run counts without this file. {error}"))
            return None

    with _damage_named(path):
        data = results["data"]
        scores = {
            split: _score(results[key])
            for split, key in SPLITS.items()
            if split == "valid" or results.get(key) is not None
        }
        num_tokens = data.get("num_tokens", {})
        parts = [
            f"only {score.num_tokens:,} targets of {split}"
            for split, score in scores.items()
            if score.num_tokens < 0.98 * num_tokens.get(split, 0)
        ]
        floors = data.get("perplexity_floor") or {}
        floor = {split: float(floors[split]) for split in SPLITS if split in floors}
        evaluations = {
            (printable(match[1]), match[2]): unless_damaged(
                _read_evaluation, file, match[2], results
            )
            for file in sorted(run_dir.glob("evaluation-*.json"))
            if (match := re.fullmatch(r"evaluation-(.+)-(valid|test)\.json", file.name))
        }
        pairs = {
            printable(file.stem.removeprefix("minimal_pairs-")): unless_damaged(
                _read_pair_accuracies, file, results
            )
            for file in sorted(run_dir.glob("minimal_pairs-*.json"))
        }
        return Run(
            run_dir=run_dir,
            name=printable(str(name or config.get("name") or results["model"])),
            config=config,
            results=results,
            model=printable(str(results["model"])),
            seed=int(results["seed"]),
            corpus=Corpus(printable(str(data["name"])), printable(str(data["sha256"])), floor),
            protocol=", ".join([protocol_text(results), *parts]),
            scores=scores,
            curve=unless_damaged(_read_curve, run_dir / "metrics.csv", results),
            evaluations={key: found for key, found in evaluations.items() if found},
            minimal_pairs={name: found for name, found in pairs.items() if found},
            skipped=skipped,
        )


def _read_evaluation(path: Path, split: str, results: Mapping[str, Any]) -> Evaluation:
    values = read_json(path)
    with _damage_named(path):
        _require_same_weights(values, results)
        if values["split"] != split:
            raise ValueError("it is of another split than its name says")
        records = path.with_suffix(".parquet")
        return Evaluation(
            score=_score(values),
            protocol=protocol_text(values),
            is_tuned=values.get("tuned") is not None,
            records=records if records.is_file() else None,
        )


def _read_pair_accuracies(path: Path, results: Mapping[str, Any]) -> PairAccuracies:
    values = read_json(path)
    with _damage_named(path):
        _require_same_weights(values, results)
        num_pairs, of = int(values["num_pairs"]), values["pairs"]
        counts = {("", "known words"): values["parts"]["known"]}
        for level, rows in values["by"].items():
            counts |= {(printable(level), printable(row["name"])): row for row in rows}
        accuracies = {("", "all"): float(values["accuracy"])} | {
            place: float(row["accuracy"])
            for place, row in counts.items()
            if row["accuracy"] is not None
        }
        if not all(0 <= accuracy <= 1 for accuracy in accuracies.values()):
            raise ValueError("an accuracy is not between 0 and 1")
        how = f"tokenizer {of['tokenizer']}{', lower case' if of['lowercase'] else ''}"
        records = path.with_suffix(".parquet")
        return PairAccuracies(
            protocol=printable(f"{num_pairs:,} pairs {of['sha256'][:12]}, {how}"),
            num_pairs=num_pairs,
            accuracies=accuracies,
            records=records if records.is_file() else None,
        )


def _require_same_weights(values: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    weights = {values.get("weights_sha256"), results.get("weights_sha256")}
    if values["corpus_sha256"] != results["data"]["sha256"] or len(weights - {None}) > 1:
        raise ValueError("it is of another corpus than the run, or of weights it no longer has")


def protocol_text(values: Mapping[str, Any]) -> str:
    """Describes the reading behind the scores of a file, in equal words where it was alike.

    Settings that were tuned may differ from seed to seed, and are still those of one recipe: of
    them it says what they were tuned on.

    Args:
        values: The content of ``results.json`` or of an ``evaluation-NAME-SPLIT.json``.

    Raises:
        KeyError, TypeError, ValueError: The file is damaged.
    """
    settings, tuned = values["evaluation"], values.get("tuned") or {}
    words = {"protocol": "protocol", "columns": "columns", "burn_in": "burn-in"}
    parts = [f"{word} {_plain(settings[key])}" for key, word in words.items() if key in settings]
    modes = {name: settings.get(name) for name in ("dynamic", "statistics", "cache")}
    modes |= {k: x for k, x in settings.items() if isinstance(x, dict) and k not in words}
    # Elsewhere it moves memory and time, not results.
    of_windows = modes["dynamic"] or modes.get("mc_dropout")
    if of_windows or (modes["cache"] and modes["cache"].get("warmup")):
        parts.append(f"window {_plain(settings.get('window'))}")
    for name, mode in modes.items():
        if not mode:
            continue
        said = []
        if name in tuned:
            some = tuned.get("num_tokens")
            said.append(f"tuned on {f'the first {some:,} tokens of ' if some else ''}valid")
        tried = [row for row in tuned.get(name) or [] if isinstance(row, dict)]
        said += [
            f"{key} {_plain(value)}"
            for key, value in mode.items()
            if value is not None and value is not False
            # Not what tuning has chosen among several values.
            if all(row.get(key) == value for row in tried)
        ]
        parts.append(f"{name} ({', '.join(said)})")
    return printable(", ".join(parts))


def _read_curve(path: Path, results: Mapping[str, Any]) -> Curve:
    timing = path.with_name("timing.csv")
    rows = [row for row in _rows(path) if row.get("val/ppl")]
    timed = _rows(timing) if timing.exists() else []
    with _damage_named(timing):
        seconds = {row["step"]: row["train/seconds"] for row in timed if row.get("train/seconds")}
    with _damage_named(path):
        num_epochs, epochs = float(results["train"]["epochs"]), [int(row["epoch"]) for row in rows]
        if not rows or not math.isfinite(num_epochs):
            raise ValueError("it holds no validation")
        perplexities = [float(row["val/ppl"]) for row in rows]
        switch = (results.get("nt_asgd") or {}).get("triggered_epoch")
        return Curve(
            epochs=tuple(min(epoch + 1, num_epochs) for epoch in epochs),
            minutes=tuple(float(seconds[row["step"]]) / 60 for row in rows)
            if all(row["step"] in seconds for row in rows)
            else None,
            perplexities=tuple(x if 0 < x < LARGEST_PERPLEXITY else math.nan for x in perplexities),
            switch=epochs.index(switch) if switch in epochs else None,
        )


def _rows(path: Path) -> list[dict[str, str]]:
    text = read_small(path)
    with _damage_named(path):
        rows = list(csv.DictReader(text.splitlines(), strict=True))
        is_cut = bool(text) and not text.endswith("\n")
        if is_cut or any(None in row or None in row.values() for row in rows):
            raise ValueError("a row does not have as many fields as there are columns, or is cut")
        return rows


def _score(values: Mapping[str, Any]) -> Score:
    score = Score(float(values["nll"]), float(values["ppl"]), int(values["num_tokens"]))
    if not (score.nll >= 0 and 1 <= score.ppl <= LARGEST_PERPLEXITY):
        raise ValueError(f"{score.ppl:g} is not the perplexity of a run, unless one that diverged")
    if abs(math.log(score.ppl) - score.nll) > 0.01:
        raise ValueError(f"{score.ppl:g} is not the perplexity of {score.nll:g} nats")
    return score


def _plain(value: Any) -> str:
    """A setting: numbers that are equal, as 1 and 1.0, in equal words; a dict is by split."""
    if isinstance(value, dict):
        return " and ".join(f"{_plain(item)} ({split})" for split, item in value.items())
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turns what a damaged file makes Python raise into a sentence."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, csv.Error) as error:
        what = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} is damaged: {what}. Copy it again, or run again.") from error
