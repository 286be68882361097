"""Ensembles: the probabilities that several runs gave each target, averaged.

Shape letters: M members, N targets of a split.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lmbench.errors import UserError
from lmbench.files import read_small, replacing
from lmbench.report.records import read_columns
from lmbench.report.runs import SPLITS, Evaluation, Run, Score, find_run_dirs, read_run
from lmbench.report.significance import OWN_PREDICTIONS
from lmbench.report.tables import Cell, Table, perplexity_text


def mixture_weights(probabilities: np.ndarray) -> np.ndarray:
    """The weights of a mixture with the largest likelihood, by EM (Dempster et al. 1977).

    Args:
        probabilities: ``(M, N)``, of each target by each member, above 0.

    Returns:
        ``(M,)``, which sum to 1.
    """
    weights = np.full(len(probabilities), 1 / len(probabilities))
    for _ in range(10_000):
        responsibilities = weights[:, None] * probabilities
        before, weights = weights, (responsibilities / responsibilities.sum(axis=0)).mean(axis=1)
        if np.abs(weights - before).max() < 1e-9:
            break
    return weights


def build_ensemble(
    folders: Sequence[Path], name: str | None, output: Path | None
) -> tuple[Run, Table]:
    """Averages the probabilities of runs and of others' models, with weights found on valid.

    Args:
        folders: Runs that were evaluated with ``evaluation.save_tokens=true`` on valid and test, or
            folders of such; or folders with ``valid.txt`` and ``test.txt``, the probability of a
            target on each line, of models that lmbench does not have.
        name: What it is called; None for its number of members.
        output: Where its own records go, ``NAME-SPLIT.parquet`` and ``.txt``; None for nowhere.

    Returns:
        The ensemble as a run, and a table of its members.

    Raises:
        UserError: There are fewer than two members, or none is a run; records are missing or
            damaged; members are of other corpora or other targets; or the output cannot be written.
    """
    found = {folder: find_run_dirs(folder, []) for folder in folders}
    runs = [read_run(run_dir) for run_dirs in found.values() for run_dir in run_dirs]
    others = [folder for folder, run_dirs in found.items() if not run_dirs]
    if not runs or len(runs) + len(others) < 2:
        raise UserError("An ensemble takes two members or more, at least one of them a run.")
    name = name or f"ensemble of {len(runs) + len(others)}"
    path = None if output is None else output / name.replace("/", "_").replace(" ", "_")
    probabilities, scores, evaluations = {}, {}, {}
    weights = np.zeros(0)
    for split in SPLITS:
        columns = _read_alike(runs, split)
        logs = [of["log_probability"].astype(np.float64) for of in columns]
        texts = [_read_text(folder / f"{split}.txt", len(logs[0])) for folder in others]
        probabilities[split] = np.stack([*map(np.exp, logs), *texts])
        if split == "valid":
            weights = mixture_weights(probabilities[split])
        mixed = np.log(weights @ probabilities[split])
        scores[split] = Score(-float(mixed.mean()), _perplexity(mixed), len(mixed))
        records = None if path is None else path.with_name(f"{path.name}-{split}.parquet")
        if records is not None:
            _write(records, columns[0] | {"log_probability": mixed.astype(np.float32)})
        evaluations["standard", split] = Evaluation(
            scores[split], runs[0].protocol, is_tuned=False, records=records
        )
    run = Run(
        run_dir=path or Path(name),
        name=name,
        config={"ensemble": " ".join(map(str, folders))},
        results={"num_parameters": sum(run.number("num_parameters") or 0 for run in runs)},
        model="ensemble",
        seed=0,
        corpus=runs[0].corpus,
        protocol=runs[0].protocol,
        scores=scores,
        curve=None,
        evaluations=evaluations,
    )
    names = [f"{run.name}, seed {run.seed}" for run in runs] + [str(folder) for folder in others]
    return run, _members(names, weights, probabilities, f"Members of {name}")


def _members(
    names: Sequence[str], weights: np.ndarray, probabilities: Mapping[str, np.ndarray], title: str
) -> Table:
    rows = [
        {
            "member": Cell(name, "member"),
            "weight": Cell(float(weights[index]), "weight", "{:.4f}".format),
            **{
                f"{split}_ppl": Cell(_perplexity(np.log(of[index])), split, perplexity_text)
                for split, of in probabilities.items()
            },
        }
        for index, name in enumerate(names)
    ]
    notes = ["Weights by EM on valid: of the ensemble, only the test perplexity is fair."]
    return Table(title, rows, notes)


def _read_alike(runs: Sequence[Run], split: str) -> list[dict[str, np.ndarray]]:
    """The records of the runs, which must be of the same targets."""
    read: list[dict[str, np.ndarray]] = []
    for run in runs:
        own = (run.evaluations.get((name, split)) for name in OWN_PREDICTIONS)
        evaluation = next((one for one in own if one and one.records), None)
        if evaluation is None or evaluation.records is None:
            raise UserError(
                f"{run.run_dir} has no record of its probabilities on {split}. To make it: "
                f"lmbench-evaluate run={run.run_dir} split={split} evaluation.save_tokens=true"
            )
        read.append(read_columns(evaluation.records, evaluation.score.num_tokens))
        same = all(np.array_equal(read[-1][key], read[0][key]) for key in ("position", "target"))
        if run.corpus != runs[0].corpus or not same:
            raise UserError(
                f"{run.run_dir} is of another corpus than {runs[0].run_dir}, or was scored on "
                f"other targets of {split}: they cannot be members of one ensemble."
            )
    return read


def _read_text(path: Path, num_targets: int) -> np.ndarray:
    """Probabilities, one on each line, as DavidHerel/sota_lm exchanges them."""
    try:
        values = np.array(read_small(path).split(), dtype=np.float64)
    except ValueError as error:
        raise UserError(f"{path} is not a list of probabilities: {error}.") from error
    if len(values) != num_targets or not ((values > 0) & (values <= 1)).all():
        raise UserError(
            f"{path} must have {num_targets:,} lines, each with a probability above 0; it has "
            f"{len(values):,}."
        )
    return values


def _write(path: Path, columns: dict[str, np.ndarray]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    article = columns.get("article", [None] * len(columns["position"]))
    table = pa.table(columns | {"article": pa.array(article, pa.int32())})
    lines = "".join(f"{p:.9g}\n" for p in np.exp(columns["log_probability"]).tolist())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        with replacing(path.with_suffix(".txt")) as temporary:
            temporary.write_text(lines)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def _perplexity(log_probs: np.ndarray) -> float:
    return float(np.exp(-log_probs.mean()))
