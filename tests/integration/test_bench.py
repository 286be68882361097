"""``scripts/bench.py`` at tiny sizes: it measures what it says, and compares equal work."""

from pathlib import Path

import bench
import pytest
import torch

from lmbench.errors import UserError
from lmbench.instantiate.model import build_model
from lmbench.run.config import plain_config


@pytest.mark.slow
def test_each_step_of_a_model_is_measured(tmp_path: Path):
    args = bench.parse_arguments(["--quick", "--precisions", "highest"])
    rows = bench.model_rows(bench.config_of("model=lstm", *bench.TINY), args, str(tmp_path))
    by_name = {(row.group, row.name): row for row in bench.measured(rows, args)}
    training = by_name["training", "lmbench, highest"]
    # Two layers 16 → 16 → 16 and 1,000 words; a window of 8 steps in 4 columns.
    forward = 2 * 2 * 4 * 16 * (16 + 16) + 2 * 16 * 1000
    assert (training.num_tokens, training.flop) == (8 * 4, 3 * forward * 8 * 4)
    evaluation = by_name["evaluation", "lmbench, highest"]
    assert evaluation.flop == forward * evaluation.num_tokens
    for row in rows:
        assert len(row.seconds) >= args.rounds
        assert min(row.seconds) > 0
    assert bench.table("lstm", rows).row_count > len(rows)


@pytest.mark.slow
def test_a_text_and_heads_of_a_given_size_are_measured(tmp_path: Path):
    args = bench.parse_arguments(["--quick", "--scale", "20000"])
    rows = bench.measured(bench.scale_rows(args, str(tmp_path)), args)
    assert [row.name for row in rows] == ["softmax", "adaptive_softmax", "tokenize and number"]
    text = (tmp_path / "text/train.txt").read_text("utf-8")
    assert len(text.split()) + text.count("\n") == 20_000


@pytest.mark.parametrize("shift", [0.1, float("nan")])
def test_speeds_of_unequal_work_are_not_compared(shift: float):
    config = bench.config_of("model=awd_lstm", *bench.TINY)
    model = build_model(plain_config(config)["model"], 100).eval()
    baseline, window = bench.baseline_of(config, model).eval(), bench.random_window(100, 8, 4)
    loss = bench.loss_of(config, model)
    bench.require_equal_losses(loss, baseline, window)
    with torch.no_grad():
        baseline.decoder.bias[3] += shift
    with pytest.raises(UserError, match="compute different losses"):
        bench.require_equal_losses(loss, baseline, window)
