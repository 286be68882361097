"""Curves of runs, against what their files say."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from plot_curves import draw

METRICS = """step,epoch,train/ppl,val/ppl
39,3,300.0,
39,3,,200.0
79,7,150.0,
79,7,,110.0
99,9,120.0,
99,9,,100.0
"""


@pytest.mark.parametrize(("switch_epoch", "circles"), [(7, [(8.0, 110.0)]), (None, [])])
def test_the_switch_is_marked_where_its_epoch_was_validated(
    tmp_path: Path, switch_epoch: int | None, circles: list[tuple[float, float]]
):
    """As by check_val_every_n_epoch=4, over ten epochs of ten steps."""
    (tmp_path / "metrics.csv").write_text(METRICS)
    results = {
        "data": {"num_tokens": {"train": 700}},
        "train": {"steps": 100, "tokens": 7_000},
        "test": {"ppl": 90.0},
        "nt_asgd": {"triggered_epoch": switch_epoch},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    figure, axis = plt.subplots()
    draw(axis, tmp_path, results, "C0")
    lines = [line for line in axis.lines if line.get_label() == "switch to ASGD"]
    found = [(float(x), float(y)) for line in lines for x, y in zip(*line.get_data(), strict=True)]
    plt.close(figure)
    assert found == circles
