"""The record of targets, read by other means than those it was written with."""

import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lmbench.evaluation.reading import Reading
from lmbench.evaluation.record import write_record


@pytest.fixture
def reading() -> Reading:
    log_probs = torch.tensor([-0.1, -300.0, -12.345678901234567], dtype=torch.float64)
    return Reading(np.array([1, 2, 7]), np.array([4, 0, 4], dtype=np.int32), log_probs)


def test_both_files_hold_every_target(reading: Reading, tmp_path: Path) -> None:
    write_record(reading, tmp_path / "evaluation-a.b-test", np.array([1, 3]))
    table = pq.read_table(tmp_path / "evaluation-a.b-test.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        "position": "int64",
        "target": "int32",
        "log_probability": "float",
        "article": "int32",
    }
    rows = table.to_pydict()
    assert rows["position"] == [1, 2, 7]
    assert rows["target"] == [4, 0, 4]
    assert rows["article"] == [0, 0, 1]
    exact = [-0.1, -300.0, -12.345678901234567]
    assert rows["log_probability"] == pytest.approx(exact, rel=1e-7)
    lines = (tmp_path / "evaluation-a.b-test.txt").read_text("ascii").splitlines()
    assert [float(line) for line in lines] == pytest.approx([math.exp(x) for x in exact], rel=1e-8)
    assert {path.name for path in tmp_path.iterdir()} == {
        "evaluation-a.b-test.parquet",
        "evaluation-a.b-test.txt",
    }


def test_a_text_without_articles_has_none(reading: Reading, tmp_path: Path) -> None:
    write_record(reading, tmp_path / "x", None)
    assert pq.read_table(tmp_path / "x.parquet")["article"].to_pylist() == [None] * 3


def test_what_cannot_be_written_whole_is_not_there(
    reading: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(reading, tmp_path / "x", None)
    before = (tmp_path / "x.parquet").read_bytes()

    def fail(table, path, **options) -> None:
        Path(path).write_bytes(before[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space"):
        write_record(reading, tmp_path / "x", np.array([1]))
    assert (tmp_path / "x.parquet").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
