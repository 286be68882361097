"""Log-probabilities of single tokens, as sums over articles.

Shape letter: A articles or blocks of a text.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmbench.errors import UserError

BLOCK = 1_000
"""Tokens in a block of a text without articles."""

_TYPES = {"position": "int64", "target": "int32", "log_probability": "float", "article": "int32"}
"""Types of the columns, by Arrow's names: its float has 32 bits."""

_TOLERANCE = 1e-6
"""Relative, of a mean: rounding to 32 bits moves it by less than a tenth of that."""


@dataclass(frozen=True)
class Records:
    """What one run gave the tokens of a split.

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


def read_records(path: Path, num_tokens: int, nll: float | None) -> Records:
    """Reads an ``evaluation-NAME-SPLIT.parquet``.

    Args:
        path: The file.
        num_tokens: Targets that the evaluation scored; the file has a row for each.
        nll: What it came to, in nats per token; None where that is not the mean over the targets.

    Raises:
        UserError: The file is damaged, holds something else, or is of another evaluation.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != num_tokens or not num_tokens:
                raise ValueError(f"it has {file.metadata.num_rows:,} rows, not {num_tokens:,}")
            types = {name: str(file.schema_arrow.field(name).type) for name in _TYPES}
            if types != _TYPES:
                raise ValueError(f"its columns are {types}, not {_TYPES}")
            columns = file.read(list(_TYPES))
        has_articles = columns["article"].null_count < num_tokens
        for name in [*_TYPES][: 3 + has_articles]:
            if columns[name].null_count:
                raise ValueError(f"{name} has gaps")
        position, target, nats = (columns[name].to_numpy() for name in [*_TYPES][:3])
        if not (np.diff(position) > 0).all():
            raise ValueError("position does not ascend")
        if not (np.isfinite(nats) & (nats <= 0)).all():
            raise ValueError("log_probability is not finite, or above 0")
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path} is damaged: {error}. Make it again with lmbench-evaluate."
        ) from error
    unit = "article" if has_articles else "block"
    of_token = columns["article"].to_numpy() if has_articles else (position - 1) // BLOCK
    digest = hashlib.sha256(unit.encode())
    for values in (position, target, of_token):
        digest.update(values.tobytes())
    _, place = np.unique(of_token, return_inverse=True)
    sums = np.bincount(place, weights=nats)
    mean = -float(sums.sum()) / num_tokens
    if nll is not None and not math.isclose(mean, nll, rel_tol=_TOLERANCE):
        raise UserError(
            f"{path} does not belong to the evaluation beside it, which came to {nll:.6f} nats per "
            f"token, and not to {mean:.6f}. Make both again with lmbench-evaluate."
        )
    return Records(text=digest.hexdigest(), unit=unit, sums=sums, num_tokens=np.bincount(place))
