"""``scripts/bench.py`` at tiny sizes: it works, and counts what it says it counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/bench.py"


@pytest.mark.slow
def test_the_bench_measures_each_variant(tmp_path: Path):
    output = tmp_path / "bench.json"
    arguments = ("--quick", "model=lstm", "--precisions", "highest", "--output", str(output))
    command = [sys.executable, str(SCRIPT), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    variants = json.loads(output.read_text("utf-8"))["models"]["lstm"]["variants"]
    training, evaluation = variants["training/highest"], variants["evaluation/highest"]
    # Two layers 16 → 16 → 16 and 1,000 words; a window of 8 steps in 4 columns.
    forward = 2 * 2 * 4 * 16 * (16 + 16) + 2 * 16 * 1000
    assert training["flop"] == 3 * forward * 8 * 4
    assert evaluation["flop"] == forward * 8 * 4
    losses = variants["training/baseline"]["loss"]
    assert losses["lmbench"] == pytest.approx(losses["baseline"], rel=1e-5)
    assert len(training["seconds"]["step"]) == 4  # two rounds of two steps
    assert all(seconds > 0 for seconds in training["seconds"]["step"])
