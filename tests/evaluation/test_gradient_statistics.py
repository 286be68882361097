"""The file that keeps statistics; their values are tested in test_dynamic.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from lmbench.evaluation.gradient_statistics import Statistics, keep_statistics

MADE_FROM = {"weights": "abc", "window": 5, "segments": None}
SHAPES = {"a.weight": torch.Size([2, 3])}


class Computer:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Statistics:
        self.calls += 1
        return {"a.weight": torch.arange(6.0).reshape(2, 3) + self.calls}


def test_statistics_are_computed_once(tmp_path: Path) -> None:
    compute = Computer()
    path = tmp_path / "statistics.safetensors"
    first = keep_statistics(path, MADE_FROM, SHAPES, compute)
    second = keep_statistics(path, dict(MADE_FROM), SHAPES, compute)
    assert compute.calls == 1
    assert first.keys() == second.keys() == {"a.weight"}
    assert torch.equal(first["a.weight"], second["a.weight"])
    assert [file.name for file in tmp_path.iterdir()] == ["statistics.safetensors"]


@pytest.mark.parametrize("change", [{"window": 6}, {"weights": "abd"}, {"segments": 3}, {"x": 1}])
def test_a_file_made_from_anything_else_is_made_anew(tmp_path: Path, change: dict) -> None:
    compute = Computer()
    path = tmp_path / "statistics.safetensors"
    keep_statistics(path, MADE_FROM, SHAPES, compute)
    changed = keep_statistics(path, MADE_FROM | change, SHAPES, compute)
    assert compute.calls == 2
    assert changed["a.weight"][0, 0] == 2


@pytest.mark.parametrize("length", [0, 4, 50, -1])
def test_a_damaged_file_is_made_anew(tmp_path: Path, length: int) -> None:
    compute = Computer()
    path = tmp_path / "statistics.safetensors"
    keep_statistics(path, MADE_FROM, SHAPES, compute)
    path.write_bytes(path.read_bytes()[:length])
    keep_statistics(path, MADE_FROM, SHAPES, compute)
    assert compute.calls == 2
    keep_statistics(path, MADE_FROM, SHAPES, compute)
    assert compute.calls == 2


def test_where_they_cannot_be_kept_they_are_computed_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gone/statistics.safetensors"
    found = keep_statistics(path, MADE_FROM, SHAPES, Computer())
    assert found["a.weight"][0, 0] == 1
    assert f"{path} cannot be written: No such file or directory." in caplog.text


@pytest.mark.parametrize(
    "content",
    [{}, {"b.weight": torch.ones(2, 3)}, {"a.weight": torch.ones(3, 2)}],
)
def test_a_file_of_other_tensors_is_made_anew(tmp_path: Path, content: Statistics) -> None:
    compute = Computer()
    path = tmp_path / "statistics.safetensors"
    metadata = {key: str(value) for key, value in MADE_FROM.items()}
    path.write_bytes(save(content, metadata=metadata))
    found = keep_statistics(path, MADE_FROM, SHAPES, compute)
    assert compute.calls == 1
    assert found["a.weight"].shape == (2, 3)
