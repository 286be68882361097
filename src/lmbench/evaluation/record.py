"""The log-probability of every target as a file, for statistics and for exchange with others."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmbench.evaluation.reading import Reading
from lmbench.evaluation.summary import articles
from lmbench.files import replace_text, replacing


def write_record(reading: Reading, path: Path, article_starts: np.ndarray | None) -> None:
    """Writes ``PATH.parquet`` and ``PATH.txt``, each whole or not at all.

    The Parquet file has a row a target: ``position`` in the stream, ``target`` (id),
    ``log_probability`` (nats, rounded to float32) and ``article`` (from 0; null where the text has
    none). The text file has a target's probability a line, in the same order.

    Args:
        reading: What was scored.
        path: Without the ending.
        article_starts: Where articles begin in the stream, if it has any.
    """
    log_probs = reading.log_probs.numpy()
    if article_starts is None:
        article = pa.nulls(len(log_probs), pa.int32())
    else:
        article = pa.array(articles(reading, article_starts), pa.int32())
    table = pa.table(
        {
            "position": pa.array(reading.positions, pa.int64()),
            "target": pa.array(reading.targets, pa.int32()),
            "log_probability": pa.array(log_probs.astype(np.float32)),
            "article": article,
        }
    )
    with replacing(path.with_name(f"{path.name}.parquet")) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    lines = "\n".join(f"{probability:.9g}" for probability in np.exp(log_probs).tolist())
    replace_text(path.with_name(f"{path.name}.txt"), lines + "\n")
