"""Learning curves of groups."""

import math
from collections.abc import Sequence
from itertools import chain
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np

from lmbench.report.curves import Curve
from lmbench.report.groups import Group, Section
from lmbench.report.published import Published
from lmbench.report.style import GREY, LABEL_LENGTH, WIDTH, color_of, dash_of
from lmbench.report.summary import perplexity_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {
    "epochs": "epochs",
    "tokens": "trained tokens (millions)",
    "minutes": "wall-clock time of the training (minutes)",
}
"""What perplexity is drawn against, as fields of a curve, and what the axis says."""

_STEPS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)  # between ticks that are close
_LEAST_GAP = 0.045  # between two labels, of the height of the axes


def curves_of(group: Group, quantity: str) -> list[Curve]:
    """Curves of those runs that have recorded the quantity."""
    curves = [run.curve for run in group.runs if run.curve]
    return [
        curve
        for curve in curves
        if getattr(curve, quantity) is not None and np.isfinite(getattr(curve, quantity)).all()
    ]


def draw_curves(
    section: Section, groups: Sequence[Group], quantity: str, published: Sequence[Published]
) -> "Figure":
    """Valid perplexity on a logarithmic axis: mean over seeds, thin lines for single seeds.

    A circle is the switch to averaged SGD. The means end where the first seed ends.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    lines = [(group, curves_of(group, quantity)) for group in groups]
    bottom, top = _limits(section, [curve.perplexities for _, curves in lines for curve in curves])
    references = [(one.model, float(one.scores["standard"][0])) for one in published]
    bottom = min([bottom, *(0.97 * ppl for _, ppl in references)])
    top = max([top, *(1.03 * ppl for _, ppl in references)])
    num_entries = len(groups) + len(references) + 2
    figure = Figure(figsize=(WIDTH, 2.9 + 0.19 * num_entries), layout="constrained")
    axes = figure.add_subplot()
    scale = 1e-6 if quantity == "tokens" else 1.0
    entries: list[tuple[Any, str]] = []
    switched = False
    for group, curves in lines:
        color, dash = color_of(group), dash_of(group)
        for curve in curves:
            x = scale * np.asarray(getattr(curve, quantity))
            y = np.asarray(curve.perplexities)
            if len(curves) > 1:
                axes.plot(x, y, color=color, linewidth=0.6, alpha=0.45)
            if curve.switch is not None:
                switched = True
                axes.plot(
                    *(values[curve.switch] for values in (x, y)), "o", color=color, fillstyle="none"
                )
        length = min(len(curve.perplexities) for curve in curves)
        xs = np.mean([getattr(curve, quantity)[:length] for curve in curves], axis=0)
        ys = np.mean([curve.perplexities[:length] for curve in curves], axis=0)
        marker = "." if length < 40 else ""
        (line,) = axes.plot(scale * xs, ys, color=color, linestyle=dash, marker=marker)
        entries.append((line, group.short_label(LABEL_LENGTH)))
    axes.set(xlabel=AXES[quantity], ylabel="valid perplexity", yscale="log", ylim=(bottom, top))
    if switched:
        (circle,) = axes.plot([], [], "o", color=GREY, fillstyle="none", linestyle="none")
        entries.append((circle, "switch to averaged SGD"))
    floor = section.corpus.perplexity_floor.get("valid")
    if floor:
        line = axes.axhline(floor, color=GREY, linewidth=1.5, zorder=1)
        entries.append((line, f"perplexity floor {floor:.2f}"))
    entries += _draw_references(axes, references)
    axes.set_yticks(_ticks(bottom, top))
    axes.yaxis.set_major_formatter("{x:.4g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=[]))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if quantity == "epochs":
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(alpha=0.25)
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=8)
    return figure


def _draw_references(
    axes: "Axes", references: Sequence[tuple[str, float]]
) -> list[tuple[Any, str]]:
    """Dotted lines, lettered at their right end; lines that lie close share a label."""
    entries: list[tuple[Any, str]] = []
    labels: list[tuple[float, str]] = []
    bottom, top = np.log(axes.get_ylim())
    ascending = sorted(references, key=lambda item: item[1])
    for letter, (model, ppl) in zip(ascii_lowercase, ascending, strict=False):
        line = axes.axhline(ppl, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        entries.append((line, f"{letter}  {model}, published {ppl:g}"))
        place = (np.log(ppl) - bottom) / (top - bottom)
        if labels and place - labels[-1][0] < _LEAST_GAP:
            labels[-1] = labels[-1][0], f"{labels[-1][1][0]}\N{EN DASH}{letter}"
        else:
            labels.append((place, letter))
    for place, text in labels:
        axes.text(1.01, place, text, color=GREY, fontsize=8, va="center", transform=axes.transAxes)
    return entries


def _limits(section: Section, curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Limits from the lowest perplexity or floor to the highest after each curve's beginning.

    A first epoch that has not learnt much yet, or has diverged, would flatten all the rest.
    """
    late = [curve[max(1, len(curve) // 10) :] if len(curve) > 2 else curve for curve in curves]
    values = [ppl for ppl in chain.from_iterable(late) if np.isfinite(ppl)]
    if not values:
        return 1.0, 10.0
    lowest = min([*values, section.corpus.perplexity_floor.get("valid", math.inf)])
    return 0.97 * lowest, max(1.1 * lowest, min(1.05 * max(values), 10 * lowest))


def _ticks(bottom: float, top: float) -> list[float]:
    """Three to eight round numbers, where there are so many."""
    exponents = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    ticks: list[float] = []
    for digits in ([1, 2, 5], [1, 1.5, 2, 3, 5, 7], *(np.arange(1, 10, d) for d in _STEPS)):
        ticks = [k * 10.0**n for n in exponents for k in digits if bottom <= k * 10.0**n <= top]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / 8) or 1]


def curve_alt(section: Section, groups: Sequence[Group], quantity: str) -> str:
    """What a picture of the curves shows, in words."""
    ends = []
    for group in groups:
        last = np.mean([curve.perplexities[-1] for curve in curves_of(group, quantity)])
        ends.append(f"{group.short_label(80)} ends at {perplexity_text(float(last))}")
    return f"Valid perplexity on {section.corpus.name} against {AXES[quantity]}: {'; '.join(ends)}"


def curve_caption(groups: Sequence[Group], quantity: str) -> str:
    """How to read the curves, and how many runs are not among them."""
    caption = f"Valid perplexity against {AXES[quantity]}: mean over seeds, thin lines for seeds."
    missing = sum(len(group.runs) - len(curves_of(group, quantity)) for group in groups)
    if quantity == "tokens":
        caption += " Tokens are steps times the run's mean number of tokens a step."
    if missing:
        caption += f" Runs that have not recorded this, or cannot be read: {missing}."
    return caption + (
        " The axis may leave out the first tenth of the validations, at least the first one, and "
        "what is above ten times the lowest perplexity."
    )
