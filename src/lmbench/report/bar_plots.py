"""Bars of test perplexity."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmbench.report.groups import Group, Section
from lmbench.report.published import Published
from lmbench.report.style import GREY, LABEL_LENGTH, WIDTH, color_of
from lmbench.report.summary import estimate_text, protocol_marks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_bars(
    section: Section, groups: Sequence[Group], published: Sequence[Published]
) -> "Figure":
    """Means over seeds from zero on, with their intervals; published results beneath, in grey."""
    from matplotlib.figure import Figure

    marks = protocol_marks(section.groups)
    rows = [
        (
            group.short_label(LABEL_LENGTH) + marks[group.protocol],
            group.perplexity("test"),
            color_of(group),
        )
        for group in groups
    ]
    num_rows = len(rows) + len(published)
    figure = Figure(figsize=(WIDTH, 0.75 + 0.42 * num_rows), layout="constrained")
    axes = figure.add_subplot()
    means = [value.mean for _, value, _ in rows if value]
    ends = [value.mean + (value.half_width or 0.0) for _, value, _ in rows if value]
    right = min(max(ends), 10 * min(means))  # a group that diverged would flatten the rest
    right = max([right, *(float(one.scores["standard"][1]) for one in published)])
    for place, (label, value, color) in enumerate(rows):
        assert value is not None
        half_width = value.half_width or 0.0
        axes.barh(place, value.mean, height=0.4, color=color)
        if half_width:
            axes.errorbar(
                value.mean, place, xerr=half_width, color="#000000", capsize=3, linewidth=1.2
            )
        _annotate(axes, place, label, min(value.mean + half_width, right), estimate_text(value))
    for place, one in enumerate(published, start=len(rows)):
        ppl = float(one.scores["standard"][1])
        axes.barh(place, ppl, height=0.4, facecolor="none", edgecolor=GREY, linestyle=":")
        _annotate(
            axes, place, f"published: {one.model}", ppl, one.scores["standard"][1], color=GREY
        )
    floor = section.corpus.perplexity_floor.get("test")
    if floor:
        axes.axvline(floor, color=GREY, linewidth=1.5, zorder=0)
        axes.text(floor, -0.85, f"floor {floor:.2f} ", ha="right", fontsize=8, color=GREY)
    axes.set(xlabel="test perplexity", xlim=(0, 1.45 * right), ylim=(num_rows - 0.6, -1.1))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    return figure


def _annotate(
    axes: "Axes", place: int, label: str, end: float, value: str, color: str = "#000000"
) -> None:
    text = {"fontsize": 8, "color": color, "bbox": {"facecolor": "white", "lw": 0, "pad": 0.6}}
    axes.text(0, place - 0.27, label, va="bottom", **text)
    axes.annotate(value, (end, place), (5, 0), textcoords="offset points", va="center", **text)
