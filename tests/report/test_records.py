import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmbench.errors import UserError
from lmbench.report._evaluations import SplitScore
from lmbench.report.records import BLOCK, read_records, write_columns

Write = Callable[..., Path]
NATS = -np.random.default_rng(1).gamma(2, 2, 2_500)


SCORE = SplitScore(1.0, math.e, 3)
"""The score of the file that :func:`write` writes."""


def score_of(nats: np.ndarray) -> SplitScore:
    nll = -float(nats.mean())
    return SplitScore(nll, math.exp(nll), len(nats))


def test_sums_over_articles_are_those_of_a_plain_loop(tmp_path: Path, write_evaluation: Write):
    articles = np.repeat([0, 2, 3], [700, 1, 1799])
    path = write_evaluation(tmp_path, log_probabilities=NATS, articles=articles)
    records = read_records(path.with_suffix(".parquet"), score_of(NATS))
    assert records.unit == "article"
    assert records.num_tokens.tolist() == [700, 1, 1799]
    for article, found in zip((0, 2, 3), records.sums, strict=True):
        values = [
            float(np.float32(x)) for x, of in zip(NATS, articles, strict=True) if of == article
        ]
        assert found == pytest.approx(sum(values), rel=1e-12)


def test_tokens_without_articles_form_blocks_of_a_thousand(tmp_path: Path, write_evaluation: Write):
    path = write_evaluation(tmp_path, log_probabilities=NATS)
    records = read_records(path.with_suffix(".parquet"), score_of(NATS))
    assert records.unit == "block"
    assert records.num_tokens.tolist() == [BLOCK, BLOCK, 500]
    assert records.sums[2] == pytest.approx(NATS[2_000:].astype(np.float32).sum(dtype="f8"))


def test_the_text_is_what_was_scored_not_how_well(tmp_path: Path, write_evaluation: Write):
    texts = []
    for name, nats, articles in (
        ("a", NATS, None),
        ("b", NATS / 2, None),
        ("c", NATS, np.zeros(2_500)),
        ("d", NATS[:-1], None),
    ):
        path = write_evaluation(tmp_path, name, log_probabilities=nats, articles=articles)
        texts.append(read_records(path.with_suffix(".parquet"), score_of(nats)).text)
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def write(path: Path, **changes: pa.Array | None) -> Path:
    columns = {
        "position": pa.array([1, 2, 3], pa.int64()),
        "target": pa.array([5, 5, 6], pa.int32()),
        "log_probability": pa.array([-1.0, -2.0, 0.0], pa.float32()),
        "article": pa.array([0, 0, 1], pa.int32()),
    } | changes
    pq.write_table(pa.table({key: value for key, value in columns.items() if value}), path)
    return path


@pytest.mark.parametrize("factor", [0.95, 1.0001])
def test_records_must_have_the_scores_mean(tmp_path: Path, write_evaluation: Write, factor: float):
    """The mean may exceed the score's only by as much as the published code's divisor explains."""
    path = write_evaluation(tmp_path, log_probabilities=NATS).with_suffix(".parquet")
    for allowed in (1.0, 2_500 / 2_510):
        read_records(path, score_of(allowed * NATS))
    with pytest.raises(UserError, match=r"its mean is .* nats, not "):
        read_records(path, score_of(factor * NATS))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"position": pa.array([1, 2, 3], pa.int32())}, "its columns are"),
        ({"target": None}, "target"),
        ({"log_probability": pa.array([-1, np.nan, 0], pa.float32())}, "its mean is nan nats"),
    ],
)
def test_damaged_records_are_named(tmp_path: Path, changes: dict, part: str):
    path = write(tmp_path / "x.parquet", **changes)
    with pytest.raises(UserError, match=rf"x\.parquet is damaged: .*{part}.*Make it again"):
        read_records(path, SCORE)


def test_short_cut_and_missing_files_are_refused(tmp_path: Path):
    path = write(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="it has 3 rows, not 4"):
        read_records(path, SplitScore(1.0, math.e, 4))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"x\.parquet is damaged"):
        read_records(path, SCORE)
    with pytest.raises(UserError, match=r"y\.parquet is damaged"):
        read_records(tmp_path / "y.parquet", SCORE)


COLUMNS = {
    "position": np.array([1, 2, 7]),
    "target": np.array([4, 0, 4], dtype=np.int32),
    "log_probability": np.array([-0.1, -300.0, -12.345678901234567]),
}


def test_both_files_hold_every_target(tmp_path: Path) -> None:
    path = tmp_path / "evaluation-a.b-test.parquet"
    write_columns(path, COLUMNS | {"article": np.array([0, 0, 1])})
    table = pq.read_table(path)
    assert {field.name: str(field.type) for field in table.schema} == {
        "position": "int64",
        "target": "int32",
        "log_probability": "float",
        "article": "int32",
    }
    rows = table.to_pydict()
    assert (rows["position"], rows["target"]) == ([1, 2, 7], [4, 0, 4])
    assert rows["article"] == [0, 0, 1]
    exact = [-0.1, -300.0, -12.345678901234567]
    assert rows["log_probability"] == pytest.approx(exact, rel=1e-7)
    lines = (tmp_path / "evaluation-a.b-test.txt").read_text("ascii").splitlines()
    assert [float(line) for line in lines] == pytest.approx([math.exp(x) for x in exact], rel=1e-8)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_article_column_of_a_text_without_articles_is_null(tmp_path: Path) -> None:
    write_columns(tmp_path / "x.parquet", COLUMNS)
    assert pq.read_table(tmp_path / "x.parquet")["article"].to_pylist() == [None] * 3
