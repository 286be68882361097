"""Draws the validation curves of runs, for ``build_results.py``."""

import csv
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import ScalarFormatter

from lmbench.files import read_json

MOST_WITH_TRAINING = 3
"""Runs of whose train perplexities the picture stays readable."""


def draw_curves(output: Path, run_dirs: list[Path], title: str) -> None:
    """Valid perplexity of the runs of one corpus against their epochs.

    A circle is the switch to averaged SGD, a grey line the perplexity floor of the embedded corpus;
    of few runs, a dotted line is the train perplexity, which is under dropout.
    """
    runs = [(run, lineage(run)) for run in run_dirs]
    with_training = len(runs) <= MOST_WITH_TRAINING
    figure, axis = plt.subplots(figsize=(7 if with_training else 9, 4), layout="constrained")
    dotted = " (dotted: train, under dropout)" if with_training else ""
    axis.set(title=title, xlabel="epochs", ylabel=f"valid perplexity{dotted}", yscale="log")
    colors = mpl.colormaps["tab10" if len(runs) <= 10 else "tab20"]
    tops = [
        draw(axis, run, results, to_hex(colors(index)), with_training=with_training)
        for index, (run, results) in enumerate(runs)
    ]
    floor = runs[0][1][-1]["data"].get("perplexity_floor")
    if floor:
        axis.axhline(floor["valid"], color="0.5", label=f"floor {floor['valid']:.1f}")
    axis.set_ylim(top=1.2 * max(tops))  # train begins far above; last, or it would fix the bottom
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(ScalarFormatter())
    axis.grid(alpha=0.3, which="both")
    if with_training:
        axis.legend()
    else:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(output, dpi=120)


def draw(axis: Axes, run: Path, lineage: list[dict], color: str, *, with_training: bool) -> float:
    """Draws the curves of one run, and returns its highest valid perplexity."""
    *before, results = lineage
    begin = sum(map(num_epochs, before))
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    validations = [row for row in rows if row.get("val/ppl")]
    valid = [(int(row["step"]) + 1, float(row["val/ppl"])) for row in validations]
    steps_per_epoch = results["train"]["steps"] / num_epochs(results)
    seed = f", seed {results['seed']}" if run.name.startswith("seed_") else ""
    name = run.parent.name if seed else run.name
    label = f"{name}{seed}: test {results['test']['ppl']:.1f}"
    axis.plot(*scaled(valid, steps_per_epoch, begin), color=color, marker=".", label=label)
    if with_training:
        # A run of fewer steps than log_every_n_steps has none of these.
        trainings = [row for row in rows if row.get("train/ppl")]
        train = [(int(row["step"]) + 1, float(row["train/ppl"])) for row in trainings]
        axis.plot(*scaled(train, steps_per_epoch, begin), color=color, linestyle=":", linewidth=1)
    switch_epoch = results["nt_asgd"]["triggered_epoch"]
    # Not every epoch need have a validation, nor one alone: it switched after the epoch's last.
    epochs = [int(row["epoch"]) for row in validations]
    switch = [point for epoch, point in zip(epochs, valid, strict=True) if epoch == switch_epoch]
    if switch:
        x, y = scaled(switch[-1:], steps_per_epoch, begin)
        axis.plot(x, y, "o", color=color, fillstyle="none", markersize=12, label="switch to ASGD")
    return max(ppl for _, ppl in valid)


def lineage(run: Path) -> list[dict]:
    """The results of a run, and before them those of the runs whose weights it started from.

    ``init_from`` leads to these from the folder that the run lies in.
    """
    results = read_json(run / "results.json")
    start = results.get("init_from")
    return [*(lineage(run.parent / start) if start else ()), results]


def num_epochs(results: dict) -> float:
    """By tokens: older results count an epoch in which time ran out as a whole one."""
    return results["train"]["tokens"] / results["data"]["num_tokens"]["train"]


def scaled(
    points: list[tuple[int, float]], steps_per_epoch: float, begin: float
) -> tuple[list, list]:
    """Steps as epochs, after those of the runs before."""
    return [begin + step / steps_per_epoch for step, _ in points], [value for _, value in points]
