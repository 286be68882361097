"""Draws the validation curves of runs, for ``build_results.py``."""

import csv
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from lmbench.report.folders import read_json


def draw_curves(output: Path, run_dirs: list[Path]) -> None:
    """One panel per corpus: perplexity of each run against its epochs.

    A dotted line is the train perplexity, a circle the switch to averaged SGD, a grey line the
    perplexity floor of the embedded corpus.
    """
    runs = [(run, read_json(run / "results.json")) for run in run_dirs]
    corpora = list(dict.fromkeys(results["data"]["name"] for _, results in runs))
    figure, axes = plt.subplots(
        1, len(corpora), figsize=(6 * len(corpora), 4), squeeze=False, layout="constrained"
    )
    for axis, corpus in zip(axes[0], corpora, strict=True):
        axis.set(
            title=corpus, xlabel="epochs", ylabel="valid perplexity (dotted: train)", yscale="log"
        )
        on_corpus = [(run, results) for run, results in runs if results["data"]["name"] == corpus]
        tops = [
            draw(axis, run, results, f"C{color}") for color, (run, results) in enumerate(on_corpus)
        ]
        floor = on_corpus[0][1]["data"].get("perplexity_floor")
        if floor:
            axis.axhline(floor["valid"], color="0.5", label=f"floor {floor['valid']:.1f}")
        axis.set_ylim(
            top=1.2 * max(tops)
        )  # train begins far above; last, or it would fix the bottom
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(ScalarFormatter())
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    figure.savefig(output, dpi=120)


def draw(axis: Axes, run: Path, results: dict, color: str) -> float:
    """Draws the curves of one run, and returns its highest valid perplexity."""
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    validations = [row for row in rows if row.get("val/ppl")]
    valid = [(int(row["step"]) + 1, float(row["val/ppl"])) for row in validations]
    # A run of fewer steps than log_every_n_steps has none of these.
    trainings = [row for row in rows if row.get("train/ppl")]
    train = [(int(row["step"]) + 1, float(row["train/ppl"])) for row in trainings]
    steps_per_epoch = results["train"]["steps"] / num_epochs(results)
    seed = f", seed {results['seed']}" if run.name.startswith("seed_") else ""
    name = run.parent.name if seed else run.name
    label = f"{name}{seed}: test {results['test']['ppl']:.1f}"
    axis.plot(*scaled(valid, steps_per_epoch), color=color, marker=".", label=label)
    axis.plot(*scaled(train, steps_per_epoch), color=color, linestyle=":", linewidth=1)
    switch_epoch = results["nt_asgd"]["triggered_epoch"]
    # Not every epoch need have a validation, nor one alone: it switched after the epoch's last.
    epochs = [int(row["epoch"]) for row in validations]
    switch = [point for epoch, point in zip(epochs, valid, strict=True) if epoch == switch_epoch]
    if switch:
        x, y = scaled(switch[-1:], steps_per_epoch)
        axis.plot(x, y, "o", color=color, fillstyle="none", markersize=12, label="switch to ASGD")
    return max(ppl for _, ppl in valid)


def num_epochs(results: dict) -> float:
    """By tokens: older results count an epoch in which time ran out as a whole one."""
    return results["train"]["tokens"] / results["data"]["num_tokens"]["train"]


def scaled(points: list[tuple[int, float]], steps_per_epoch: float) -> tuple[list, list]:
    """Steps as epochs."""
    return [step / steps_per_epoch for step, _ in points], [value for _, value in points]
