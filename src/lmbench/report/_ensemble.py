"""Ensembles: the probabilities that several runs gave each target, averaged.

Shape letters: M members, N targets of a split.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmbench.errors import UserError
from lmbench.files import file_stem, read_text
from lmbench.report._evaluations import Evaluation, SplitScore
from lmbench.report.formats import Cell, Row, Table, perplexity_text
from lmbench.report.records import read_columns, write_columns
from lmbench.report.runs import SPLITS, Run, find_run_dirs, read_run
from lmbench.run.directory import as_override


def mixture_weights(probabilities: np.ndarray) -> np.ndarray:
    """The weights of the mixture with the largest likelihood, by EM (Dempster et al. 1977).

    Args:
        probabilities: ``(M, N)``, of each target by each member; all members' values for a target
            may be scaled by the same factor.

    Returns:
        ``(M,)``; they sum to 1.
    """
    weights = np.full(len(probabilities), 1 / len(probabilities))
    before = -np.inf
    while True:
        mixed = weights @ probabilities
        likelihood = float(np.log(mixed).mean())
        if likelihood - before < 1e-12:
            return weights
        before, weights = likelihood, weights * (probabilities / mixed).mean(axis=1)


def build_ensemble(folders: Sequence[Path], name: str, output: Path | None) -> tuple[Run, Table]:
    """Averages the probabilities of runs and of others' models, with weights found on valid.

    Args:
        folders: Runs that were evaluated with ``evaluation.save_tokens=true`` on valid and test, or
            folders of such runs; or, for models from elsewhere, folders with ``valid.txt`` and
            ``test.txt``, which have the probability of a target on each line.
        name: Name of the ensemble.
        output: Where its own records go, ``NAME-SPLIT.parquet`` and ``.txt``; None for nowhere.

    Returns:
        The ensemble as a run, and a table of its members.

    Raises:
        UserError: There are fewer than two members, or none is a run; records are missing or
            damaged; members were not evaluated alike; or the output cannot be written.
    """
    # By where they are, or one that is named twice would count twice.
    folders = list({folder.resolve(): folder for folder in folders}.values())
    run_dirs_by_folder = {folder: find_run_dirs(folder, []) for folder in folders}
    run_dirs = {run_dir.resolve(): run_dir for of in run_dirs_by_folder.values() for run_dir in of}
    runs = [_read_run(run_dir) for run_dir in run_dirs.values()]
    others = [folder for folder, of in run_dirs_by_folder.items() if not of]
    num_members = len(runs) + len(others)
    if not runs or num_members < 2:
        raise UserError("An ensemble needs at least two members, at least one of them a run.")
    log_probs, scores, evaluations = {}, {}, {}
    weights = np.zeros(0)
    for split in SPLITS:
        columns, evaluation = _read_alike(runs, split)
        logs = [of["log_probability"].astype(np.float64) for of in columns]
        texts = [_read_text(folder / f"{split}.txt", len(logs[0])) for folder in others]
        log_probs[split] = np.stack([*logs, *map(np.log, texts)])
        largest = log_probs[split].max(axis=0)  # factored out, or a small one would become 0
        scaled = np.exp(log_probs[split] - largest)
        if split == "valid":
            weights = mixture_weights(scaled)
        mixed = np.minimum(largest + np.log(weights @ scaled), 0.0)  # rounding could exceed it
        scores[split] = SplitScore(-float(mixed.mean()), _perplexity(mixed), len(mixed))
        records = output and output / f"{file_stem(name)}-{split}.parquet"
        if records is not None:
            try:
                records.parent.mkdir(parents=True, exist_ok=True)
                write_columns(records, columns[0] | {"log_probability": mixed})
            except OSError as error:
                raise UserError(f"{records} cannot be written: {error.strerror}.") from error
        evaluations["standard", split] = replace(evaluation, score=scores[split], records=records)
    sizes = [x for run in runs if (x := run.number("num_parameters")) is not None]
    run = Run(
        run_dir=(output or Path()) / file_stem(name),
        name=name,
        config={"ensemble": " ".join(map(str, folders))},
        results={"num_parameters": sum(sizes)} if len(sizes) == num_members else {},
        model="ensemble",
        seed=0,
        corpus=runs[0].corpus,
        protocol=next(iter(evaluations.values())).protocol,
        scores=scores,
        curve=None,
        evaluations=evaluations,
    )
    names = [f"{run.name}, seed {run.seed}" for run in runs] + [str(folder) for folder in others]
    rows: list[Row] = []
    for index, (member, weight) in enumerate(zip(names, weights.tolist(), strict=True)):
        ppl = {split: _perplexity(of[index]) for split, of in log_probs.items()}
        row = {"member": Cell(member, "member"), "weight": Cell(weight, "weight", "{:.3f}".format)}
        rows.append(row | {f"{s}_ppl": Cell(x, s, perplexity_text) for s, x in ppl.items()})
    notes = ["Weights by EM on valid: of the ensemble, only the test perplexity is fair."]
    return run, Table(f"Members of {name}", rows, notes)


def _read_run(run_dir: Path) -> Run:
    try:
        return read_run(run_dir)
    except (UserError, OSError, RecursionError) as error:
        raise UserError(f"{run_dir} cannot be a member: {error}") from error


def _read_alike(runs: Sequence[Run], split: str) -> tuple[list[dict[str, np.ndarray]], Evaluation]:
    """The runs' records, which must be of the same targets, and the first run's evaluation."""
    read: list[dict[str, np.ndarray]] = []
    evaluations: list[Evaluation] = []
    for run in runs:
        evaluation = run.evaluations.get(("standard", split))
        if evaluation is None or evaluation.records is None:
            raise UserError(
                f"{run.run_dir} has no record of its probabilities on {split}. To make it: "
                f"lmbench-evaluate {as_override('run', run.run_dir)} split={split} "
                "evaluation.save_tokens=true"
            )
        evaluations.append(evaluation)
        read.append(read_columns(evaluation.records, evaluation.score))
        same = all(np.array_equal(read[-1][key], read[0][key]) for key in ("position", "target"))
        same = same and evaluation.protocol == evaluations[0].protocol
        if run.corpus != runs[0].corpus or not same:
            raise UserError(
                f"{run.run_dir} has a different corpus from {runs[0].run_dir}, or {split} was read "
                "differently: they cannot be members of the same ensemble."
            )
    return read, evaluations[0]


def _read_text(path: Path, num_targets: int) -> np.ndarray:
    """Probabilities, one on each line, as DavidHerel/sota_lm exchanges them."""
    try:
        values = np.array(read_text(path).removeprefix("\ufeff").split(), dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{path} is not a list of probabilities: {error}.") from error
    if len(values) != num_targets or not ((values > 0) & (values <= 1)).all():
        raise UserError(
            f"{path} must have {num_targets:,} lines, each with a probability above 0 and up to 1. "
            f"It has {len(values):,} lines."
        )
    return values


def _perplexity(log_probs: np.ndarray) -> float:
    return float(np.exp(-log_probs.mean()))
