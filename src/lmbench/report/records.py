"""Log-probabilities of tokens, summed over articles; which minimal pairs a model got right.

Shape letter: A articles or blocks of a text.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmbench.errors import UserError
from lmbench.files import replace_text, replacing
from lmbench.report._evaluations import SplitScore

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 1_000
"""Tokens in a block of a text without articles."""

_TYPES = {"position": "int64", "target": "int32", "log_probability": "float", "article": "int32"}
"""Types of the columns, by their Arrow names; ``float`` has 32 bits."""


@dataclass(frozen=True)
class Records:
    """The log-probabilities that one run gave the tokens of a split.

    Attributes:
        text: Hash of positions, targets and articles; runs with the same one can be compared.
        unit: "article" or "block".
        sums: ``(A,)`` float64, of log-probabilities in nats.
        num_tokens: ``(A,)`` int64.
    """

    text: str
    unit: str
    sums: np.ndarray
    num_tokens: np.ndarray


def read_columns(path: Path, score: SplitScore) -> dict[str, np.ndarray]:
    """The columns of an ``evaluation-NAME-SPLIT.parquet``, without ``article`` if it is empty.

    Args:
        path: The file.
        score: What the evaluation found.

    Raises:
        UserError: The file is damaged, holds something else, or is of another evaluation.
    """
    num_tokens = score.num_tokens
    with _damage_named(path):
        table = _read(path, _TYPES, num_tokens)
        if table["article"].null_count == num_tokens:
            table = table.drop_columns(["article"])
        columns = {name: table[name].to_numpy() for name in table.column_names}
        nll = -columns["log_probability"].mean(dtype=np.float64)
        # The divisor of awd-lstm-lm is up to 10 larger than the number of targets.
        if not -1e-5 * nll <= nll - score.nll <= (1e-5 + 10 / num_tokens) * nll:
            raise ValueError(f"its mean is {nll:.6f} nats, not {score.nll:.6f}")
    return columns


def write_columns(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes what :func:`read_columns` reads, and the probabilities alone to a ``.txt`` beside it.

    A row of ``PATH.parquet`` is a target: ``position`` in the stream, ``target`` (id),
    ``log_probability`` (nats, rounded to float32) and ``article`` (from 0; null where the text has
    none). A line of ``PATH.txt`` is its probability. Each file is written whole or not at all.

    Args:
        path: The file, with its ending ``.parquet``.
        columns: ``position``, ``target``, ``log_probability`` (float64), optionally ``article``.
    """
    import pyarrow as pa

    missing = [None] * len(columns["position"])
    arrays = {
        name: pa.array(columns.get(name, missing)).cast(kind) for name, kind in _TYPES.items()
    }
    write_table(path, pa.table(arrays))
    lines = "\n".join(f"{p:.9g}" for p in np.exp(columns["log_probability"]).tolist())
    replace_text(path.with_suffix(".txt"), lines + "\n")


def write_table(path: Path, table: "pa.Table") -> None:
    """Writes a Parquet file, whole or not at all."""
    import pyarrow.parquet as pq

    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_correct(path: Path, num_pairs: int, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    """Paradigm of each pair of a ``minimal_pairs-NAME.parquet``, and 1 where the run was right.

    Args:
        path: The file.
        num_pairs: Number of pairs that were read.
        accuracy: What the evaluation found.

    Raises:
        UserError: The file is damaged, holds something else, or is of another evaluation.
    """
    with _damage_named(path):
        table = _read(path, {"paradigm": "string", "correct": "bool"}, num_pairs)
        correct = np.asarray(table["correct"].to_numpy(), float)
        if abs(correct.mean() - accuracy) > 1e-9:
            raise ValueError(f"its accuracy is {correct.mean():.6f}, not {accuracy:.6f}")
        return table["paradigm"].to_numpy(), correct


def _read(path: Path, types: Mapping[str, str], num_rows: int) -> "pa.Table":
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows != num_rows or not num_rows:
            raise ValueError(f"it has {file.metadata.num_rows:,} rows, not {num_rows:,}")
        types_in_file = {name: str(file.schema_arrow.field(name).type) for name in types}
        if types_in_file != types:
            raise ValueError(f"its columns are {types_in_file}, not {types}")
        return file.read(list(types))


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turns Arrow's exceptions at a damaged file into a UserError that names it."""
    import pyarrow as pa

    try:
        yield
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path} is damaged: {error}. Make it again with lmbench-evaluate."
        ) from error


def read_records(path: Path, score: SplitScore) -> Records:
    """The columns of a file as sums over articles."""
    columns = read_columns(path, score)
    unit = "article" if "article" in columns else "block"
    unit_of_token = columns.get("article", (columns["position"] - 1) // BLOCK)
    digest = hashlib.sha256(unit.encode())
    for values in (columns["position"], columns["target"], unit_of_token):
        digest.update(values.tobytes())
    _, place = np.unique(unit_of_token, return_inverse=True)
    sums = np.bincount(place, weights=columns["log_probability"])
    return Records(text=digest.hexdigest(), unit=unit, sums=sums, num_tokens=np.bincount(place))
