"""Curves of runs, against what their files say."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from plot_curves import draw, draw_curves

METRICS = """step,epoch,train/ppl,val/ppl
39,3,300.0,
39,3,,200.0
79,7,150.0,
79,7,,110.0
99,9,120.0,
99,9,,100.0
"""


def results_of(steps: int, tokens: int, switch: int | None = None, **more: object) -> dict:
    return {
        "data": {"name": "text", "num_tokens": {"train": 70}},
        "train": {"steps": steps, "tokens": tokens},
        "test": {"ppl": 90.0},
        "nt_asgd": {"triggered_epoch": switch},
        **more,
    }


@pytest.mark.parametrize(("switch_epoch", "circles"), [(7, [(8.0, 110.0)]), (None, [])])
def test_the_switch_is_marked_where_its_epoch_was_validated(
    tmp_path: Path, switch_epoch: int | None, circles: list[tuple[float, float]]
):
    """As by check_val_every_n_epoch=4, over ten epochs of ten steps."""
    (tmp_path / "metrics.csv").write_text(METRICS)
    results = results_of(100, 700, switch_epoch)
    (tmp_path / "results.json").write_text(json.dumps(results))
    figure, axis = plt.subplots()
    assert draw(axis, tmp_path, [results], "C0", with_training=True) == 200.0
    lines = [line for line in axis.lines if line.get_label() == "switch to ASGD"]
    found = [(float(x), float(y)) for line in lines for x, y in zip(*line.get_data(), strict=True)]
    plt.close(figure)
    assert found == circles


def test_a_run_that_logged_no_train_perplexity_has_no_dots(tmp_path: Path):
    """As one of fewer steps than trainer.log_every_n_steps."""
    (tmp_path / "metrics.csv").write_text("step,epoch,val/ppl\n9,0,100.0\n")
    results = results_of(10, 70)
    figure, axis = plt.subplots()
    assert draw(axis, tmp_path, [results], "C0", with_training=True) == 100.0
    valid, train = axis.lines
    plt.close(figure)
    assert (len(valid.get_xdata()), len(train.get_xdata())) == (1, 0)


@pytest.mark.parametrize(("num_runs", "num_lines"), [(2, 4), (3, 6), (4, 4)])
def test_all_runs_lie_within_the_axis(tmp_path: Path, num_runs: int, num_lines: int):
    """From the lowest value of any to a fifth above the highest valid perplexity of any."""
    runs = [tmp_path / f"run_{number}" for number in range(num_runs)]
    for run, factor in zip(runs, (1.0, 0.1, 0.5, 0.5), strict=False):
        run.mkdir()
        rows = [(9, 0, 400 * factor, 200 * factor), (19, 1, 90 * factor, 100 * factor)]
        lines = "".join(",".join(map(str, row)) + "\n" for row in rows)
        (run / "metrics.csv").write_text("step,epoch,train/ppl,val/ppl\n" + lines)
        (run / "results.json").write_text(json.dumps(results_of(20, 140)))
    draw_curves(tmp_path / "curves.png", runs, "Text")
    (axis,) = plt.gcf().axes
    bottom, top = axis.get_ylim()
    lines = axis.get_lines()
    plt.close("all")
    assert bottom < 0.1 * (90 if num_runs <= 3 else 100)
    assert top == pytest.approx(240)
    assert len(lines) == num_lines  # the train perplexities of a few runs only


def test_a_run_goes_on_where_the_one_it_started_from_ended(tmp_path: Path):
    """After 2 and 3 epochs, in its own steps: 4 of them are an epoch."""
    starts = {"first": (None, 10, 2), "second": ("first", 30, 3), "third": ("second", 8, 2)}
    for name, (start, steps, epochs) in starts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("step,epoch,val/ppl\n3,0,100.0\n7,1,90.0\n")
        more = {"init_from": start} if start else {}
        results = results_of(steps, 70 * epochs, 1, **more)
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    draw_curves(tmp_path / "curves.png", [tmp_path / "third"], "Text")
    (axis,) = plt.gcf().axes
    valid, _, switch = axis.get_lines()
    plt.close("all")
    assert list(valid.get_xdata()) == [6.0, 7.0]
    assert list(switch.get_xdata()) == [7.0]
