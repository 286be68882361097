"""What runs left behind, read without torch and as untrusted input."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmbench.errors import UserError
from lmbench.files import is_folder, read_json, read_text, read_yaml
from lmbench.report._curves import Curve, read_curve
from lmbench.report._evaluations import (
    LARGEST_PERPLEXITY,
    Evaluation,
    PairAccuracies,
    SplitScore,
    damage_named,
    protocol_text,
    read_evaluation,
    read_pair_accuracies,
    score_of,
)
from lmbench.run.directory import DIVERGED, as_override, is_run
from lmbench.run.targets import flatten
from lmbench.terminal.printing import printable

SPLITS = {"valid": "val", "test": "test"}
"""The splits that are scored, and what ``results.json`` calls them."""


@dataclass(frozen=True)
class Skipped:
    """What was found but does not count.

    Attributes:
        path: The run's folder, or the file in it.
        reason: What was wrong, and what to do.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Corpus:
    """What a run was trained on; two are equal if their contents are.

    Attributes:
        name: Name of the corpus.
        sha256: Hash of its content.
        perplexity_floor: Split → perplexity of the true distribution, where that is known.
    """

    name: str = field(compare=False)
    sha256: str
    perplexity_floor: Mapping[str, float] = field(compare=False, default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        run_dir: Its folder.
        name: Name of its group.
        config: Its config by dotted keys.
        results: Its ``results.json``.
        model: Name of the model.
        seed: The seed that it was trained with.
        corpus: The corpus that it was trained on.
        protocol: How valid and test were read, and how much of them if not all.
        scores: Split → score of the best checkpoint; test is missing if it was not scored.
        curve: Its validations; None if they cannot be read.
        evaluations: (name, split) → what ``lmbench-evaluate`` found.
        minimal_pairs: Name of a set of pairs → its accuracies on these.
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
    scores: Mapping[str, SplitScore]
    curve: Curve | None
    evaluations: Mapping[tuple[str, str], Evaluation]
    minimal_pairs: Mapping[str, PairAccuracies] = field(default_factory=dict)
    skipped: Sequence[Skipped] = ()

    @property
    def is_ensemble(self) -> bool:
        """Whether it is a mixture of other runs, not trained itself."""
        return "ensemble" in self.config

    def score(self, split: str, evaluation: str | None = None) -> SplitScore | None:
        """What the training run found on a split, or the evaluation of that name."""
        if evaluation is None:
            return self.scores.get(split)
        kept = self.evaluations.get((evaluation, split))
        return kept and kept.score

    def number(self, *keys: str) -> float | None:
        """A number in ``results.json``, by its keys; None if it is missing or not a number."""
        value: Any = self.results
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number and abs(value) < LARGEST_PERPLEXITY else None


def read_runs(paths: Iterable[tuple[str | None, Path]]) -> tuple[list[Run], list[Skipped]]:
    """The finished runs at or under some folders, and what else was found there.

    Args:
        paths: The folders, each with a name for its runs; None for their own.

    Raises:
        UserError: A path is not a folder, or no run among them can be read.
    """
    skipped: list[Skipped] = []
    named: dict[Path, tuple[str | None, Path]] = {}
    for name, folder in paths:
        for run_dir in find_run_dirs(folder, skipped):
            first, _ = named.setdefault(run_dir.resolve(), (name, run_dir))
            if first is None:
                named[run_dir.resolve()] = name, run_dir
            elif name not in (None, first):
                reason = f"Given as {first} and as {name}: it counts once, as {first}."
                skipped.append(Skipped(run_dir, reason))
    runs: list[Run] = []
    for name, run_dir in named.values():
        try:
            runs.append(read_run(run_dir, name))
            skipped += [
                Skipped(item.path, f"The run counts without this file. {item.reason}")
                for item in runs[-1].skipped
            ]
        except (UserError, OSError, RecursionError) as error:
            skipped.append(Skipped(run_dir, str(error)))
    if not runs:
        reasons = " ".join(f"{item.path}: {item.reason}" for item in skipped[:3])
        raise UserError(f"There is no finished run to compare. {reasons}")
    return runs, skipped


def find_run_dirs(folder: Path, skipped: list[Skipped]) -> list[Path]:
    """The run directories at or under a folder, in natural order: seed-2 before seed-10.

    A run directory holds ``config.yaml`` or ``results.json``.

    Args:
        folder: Where to look.
        skipped: Is extended by what cannot be read, and by links.

    Raises:
        UserError: It is not a folder.
    """

    def unreadable(error: OSError) -> None:
        skipped.append(Skipped(Path(error.filename), f"Cannot be read: {error.strerror}."))

    if not is_folder(folder):
        raise UserError(f"{folder} is not a folder. Name run directories, or folders of them.")
    run_dirs = []
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        if "config.yaml" in files or "results.json" in files:
            run_dirs.append(Path(parent))
            # The rest may hold runs too, such as a sweep that was put into the folder of a run.
            folders[:] = [name for name in folders if name not in ("checkpoints", "wandb")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in (path for name in folders if (path := Path(parent, name)).is_symlink()):
            if not link.resolve().is_relative_to(folder.resolve()):  # "latest" is
                skipped.append(Skipped(link, "Is a link, which is not followed: name its target."))
    if not run_dirs:
        skipped.append(Skipped(folder, "Holds no run."))
    return sorted(run_dirs, key=_by_number)


def _by_number(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read_run(run_dir: Path, name: str | None = None) -> Run:
    """Reads one finished run.

    Args:
        run_dir: Its folder.
        name: Name of its group; None for the name in its config, or else that of its model.

    Raises:
        UserError: The run has not finished, or its config or results are damaged.
    """
    path = run_dir / "results.json"
    if not path.exists():
        if not is_run(run_dir):
            raise UserError("It failed before it began: no config.yaml, no results.json.")
        if (run_dir / DIVERGED).exists():
            raise UserError(f"Diverged. {read_text(run_dir / DIVERGED).strip()}")
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
            skipped.append(Skipped(path, str(error)))
            return None

    with damage_named(path):
        data = results["data"]
        scores = {
            split: score_of(results[key])
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
        if not all(1 <= value < LARGEST_PERPLEXITY for value in floor.values()):
            raise ValueError("data.perplexity_floor is not a perplexity")
        evaluations = {
            (printable(match[1]), match[2]): unless_damaged(read_evaluation, file, results)
            for file in sorted(run_dir.glob("evaluation-*.json"))
            if (match := re.fullmatch(r"evaluation-(.+)-(valid|test)\.json", file.name))
        }
        pairs = {
            printable(file.stem.removeprefix("minimal_pairs-")): unless_damaged(
                read_pair_accuracies, file, results
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
            curve=unless_damaged(read_curve, run_dir / "metrics.csv", results),
            evaluations={key: kept for key, kept in evaluations.items() if kept},
            minimal_pairs={name: kept for name, kept in pairs.items() if kept},
            skipped=skipped,
        )
