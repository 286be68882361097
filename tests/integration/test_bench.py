"""``scripts/bench*.py`` at tiny sizes: they work, and count what they say they count."""

import json
import subprocess
import sys
from pathlib import Path

import bench
import bench_variants as variants
import pytest
import torch

from lmbench.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.slow
def test_the_bench_measures_each_variant(tmp_path: Path):
    output = tmp_path / "bench.json"
    arguments = ("--quick", "model=lstm", "--precisions", "highest", "--output", str(output))
    command = [sys.executable, str(SCRIPTS / "bench.py"), *arguments]
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


@pytest.mark.parametrize("shift", [0.1, float("nan")])
def test_speeds_of_unequal_work_are_not_compared(shift: float):
    overrides = ["model=lstm", *bench.TINY]
    config, model, data = variants.set_up(overrides, bench.TINY_VOCABULARY_SIZE, num_windows=1)
    batch = next(variants.windows(data, "train"))
    baseline = variants.baseline_of(config, model)
    variants.same_loss(config, model, baseline, batch)
    with torch.no_grad():
        baseline.decoder.bias[3] += shift
    with pytest.raises(UserError, match="compute different losses"):
        variants.same_loss(config, model, baseline, batch)


@pytest.mark.slow
def test_the_bench_of_scale_makes_the_corpus_it_was_asked_for(tmp_path: Path):
    output = tmp_path / "scale.json"
    sizes = ("--tokens", "200000", "--vocabulary-size", "3000", "--output", str(output))
    command = [sys.executable, str(SCRIPTS / "bench_scale.py"), *sizes]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    rows = json.loads(output.read_text("utf-8"))
    for step in ("tokenize and number", "open again"):
        assert rows[step]["num_words"] == 3000 + 1  # and <eos>
        assert rows[step]["num_tokens"]["train"] == pytest.approx(200_000, abs=30)
    # 80 columns of full length, each without its last token as an input
    assert rows["read all windows"]["num_scored"] == pytest.approx(200_000, abs=200)
    assert rows["full softmax"]["num_parameters"] == 3000 * (400 + 1)
    assert rows["adaptive softmax"]["num_parameters"] < rows["full softmax"]["num_parameters"]
    assert all(row["seconds"] > 0 for row in rows.values())
