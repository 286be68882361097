"""Plots of a section: perplexities with their intervals, and learning curves, as PNG and SVG."""

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lmbench.files import file_stem
from lmbench.report._curves import Curve
from lmbench.report.formats import estimate_text
from lmbench.report.groups import Group, Section
from lmbench.report.literature import Published
from lmbench.report.minimal_pairs import PairResults, percent_text
from lmbench.report.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_DRAWN = 14
MOST_PHENOMENA = 40
AXES = {"epochs": "epochs", "minutes": "wall-clock time of training (minutes)"}
"""What perplexity is drawn against, as fields of a curve, and the axis label."""

GREY = "#666666"
_WIDTH = 4.8  # inches: plots can be read on a phone
_STYLE: Any = {
    "font.size": 9,
    "text.parse_math": False,  # names are not formulas
    "svg.hashsalt": "lmbench",  # the same runs make the same file
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# Okabe and Ito 2008, distinct to the colour-blind; without yellow, too pale for lines on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.")


class Plot(NamedTuple):
    """A picture: name of its files, what it shows in words, the text beneath it."""

    name: str
    alt: str
    caption: str
    png: bytes
    svg: bytes


def draw_plots(
    section: Section, published: Sequence[Published], pair_results: Sequence[PairResults] = ()
) -> list[Plot]:
    """Test perplexities, learning curves against epochs and time, and accuracies on minimal pairs.

    At most fourteen groups are drawn, those with the lowest valid perplexity. What no run has
    recorded is left out.
    """
    import matplotlib as mpl

    groups = section.groups[:MOST_DRAWN]
    more = f" Only the first {MOST_DRAWN} groups are drawn." * (len(section.groups) > MOST_DRAWN)
    corpus, plots = section.corpus.name, []
    unit = groups[0].unit if groups else "seed"
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # shown as a box
        values = {group: value for group in groups if (value := group.perplexity("test"))}
        if values:
            figure = _draw_dots(values, _references(section, published, "test"))
            said = "; ".join(f"{group.name}: {estimate_text(x)}" for group, x in values.items())
            caption = (
                f"Test perplexity: mean over {unit}s with 95% interval; small dots are {unit}s."
            )
            alt = f"Test perplexity on {corpus}: {said}"
            plots.append(_plot(figure, "test_perplexity", alt, caption + more))
        for quantity, words in AXES.items():
            curves = {group: drawn for group in groups if (drawn := curves_of(group, quantity))}
            if not curves:
                continue
            figure = _draw_curves(curves, quantity, _references(section, published, "valid"))
            said = ", ".join(group.name for group in curves)
            what = f"{words}, the whole and its end" if _has_end(curves) else words
            caption = (
                f"Valid perplexity against {what}: mean over {unit}s, and from the lowest {unit} "
                "to the highest. What is far above the rest is cut off."
            )
            alt = f"Valid perplexity on {corpus} against {words}: {said}"
            plots.append(_plot(figure, f"curves_{quantity}", alt, caption + more))
        for pairs in pair_results:
            drawn = list(pairs.accuracies)[:MOST_DRAWN]
            figure = _draw_accuracies(pairs, drawn)
            said = "; ".join(
                f"{group.name}: {percent_text(value)}"
                for group in drawn
                if (value := pairs.accuracy(group, ("", "all")))
            )
            alt = f"Accuracy on minimal pairs of {pairs.name} in %: {said}"
            caption = f"Minimal pairs of {pairs.name}: mean over {unit}s with 95% interval."
            name = f"minimal_pairs_{file_stem(pairs.name)}"
            is_cut = len(drawn) < len(pairs.accuracies)
            plots.append(_plot(figure, name, alt, caption + more * is_cut))
    return plots


def curves_of(group: Group, quantity: str) -> list[Curve]:
    """Curves of those runs that have recorded the quantity."""
    curves = [run.curve for run in group.runs if run.curve]
    return [curve for curve in curves if getattr(curve, quantity) is not None]


def _has_end(curves: Mapping[Group, Sequence[Curve]]) -> bool:
    """Whether the last third of some group's curves is a line, not a dot."""
    return any(all(len(curve.perplexities) > 3 for curve in group) for group in curves.values())


def _plot(figure: "Figure", name: str, alt: str, caption: str) -> Plot:
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=200)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return Plot(name, alt, caption, png.getvalue(), svg.getvalue())


def _color(group: Group) -> str:
    return _COLORS[(group.number - 1) % len(_COLORS)]


def _references(
    section: Section, published: Sequence[Published], split: str
) -> list[tuple[str, str, float]]:
    """What is drawn as lines, the lowest first: a mark, what it stands for, and a perplexity."""
    lines = [(result.model, float(result.standard[split == "test"])) for result in published]
    lines.sort(key=lambda line: line[1])
    marked = [
        (letter, f"{letter}  {name} {ppl:g}", ppl)
        for letter, (name, ppl) in zip(ascii_lowercase, lines, strict=False)
    ]
    floor = section.corpus.perplexity_floor.get(split)
    return [("floor", f"floor {floor:.5g}", floor), *marked] if floor else marked


def _draw_dots(
    values: Mapping[Group, Estimate], references: Sequence[tuple[str, str, float]]
) -> "Figure":
    """A row for each group, the best first, on an axis that shows their differences."""
    from matplotlib.figure import Figure

    rows = sorted(values.items(), key=lambda row: row[1].mean)
    best = rows[0][1].mean
    # Groups far behind, or with a wide interval, would squeeze the rest.
    ends = [
        x.mean + s * (x.half_width or 0) for _, x in rows if x.mean <= 2 * best for s in (-1, 1)
    ]
    low, high = max(min(ends), 0.8 * best), min(max(ends), 2 * best)
    reach = 2 * max(high - low, 0.01 * low)
    near = [ppl for *_, ppl in references if low - reach <= ppl <= high + reach]
    left, right = min([low, *near]), max([high, *near])
    margin = max(0.06 * (right - left), 0.005 * left)
    figure = Figure(figsize=(_WIDTH, 1 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(left - margin, right + margin), ylim=(len(rows) - 0.4, -1.3), yticks=[])
    for place, (group, value) in enumerate(rows):
        color, scores = _color(group), [run.scores.get("test") for run in group.runs]
        for score in filter(None, scores):
            axes.plot(score.ppl, place, ".", color=color, alpha=0.5, markersize=5)
        axes.errorbar(value.mean, place, xerr=value.half_width, fmt="o", color=color, capsize=4)
        text = f"{group.name}  {estimate_text(value)}{'  →' if value.mean > right else ''}"
        where: Any = {"transform": axes.get_yaxis_transform(), "fontsize": 8}
        axes.text(
            0.005, place - 0.24, text, bbox={"facecolor": "white", "lw": 0, "pad": 0.5}, **where
        )
    for index, (mark, _, ppl) in enumerate(references):
        if ppl in near:
            axes.axvline(ppl, color=GREY, linewidth=1, linestyle=":", zorder=0)
            axes.text(ppl, -0.7 - 0.2 * (index % 3), f" {mark}", fontsize=7, color=GREY)
    legend = textwrap.fill(", ".join(text for _, text, _ in references), 68)
    axes.set_xlabel(f"test perplexity\n{legend}" if legend else "test perplexity", fontsize=8)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return figure


def _draw_accuracies(pairs: PairResults, groups: Sequence[Group]) -> "Figure":
    """A row for all pairs and, unless they are many, each phenomenon; a dot for each group."""
    from matplotlib.figure import Figure

    places = [("", "all"), ("", "known words")]
    phenomena = pairs.names("phenomenon")
    places += [("phenomenon", name) for name in phenomena if len(phenomena) <= MOST_PHENOMENA]
    places = [place for place in places if any(pairs.accuracy(group, place) for group in groups)]
    row_inches = max(0.3, 0.13 * len(groups))
    height = 1 + row_inches * len(places) + 0.19 * len(groups)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(places)), [name.replace("_", " ") for _, name in places], fontsize=8)
    axes.set(ylim=(len(places) - 0.5, -0.5), xlabel="accuracy (%)")
    for index, group in enumerate(groups):
        shift = 0.7 * ((index + 0.5) / len(groups) - 0.5)
        values = [pairs.accuracy(group, place) for place in places]
        points = [(place + shift, value) for place, value in enumerate(values) if value]
        axes.errorbar(
            [100 * value.mean for _, value in points],
            [place for place, _ in points],
            xerr=[100 * (value.half_width or 0) for _, value in points],
            fmt="o",
            markersize=4,
            capsize=2,
            color=_color(group),
            label=f" {group.name}",
        )
    axes.axvline(50, color=GREY, linewidth=1, linestyle=":", zorder=0)
    for place in range(1, len(places)):
        axes.axhline(place - 0.5, color=GREY, linewidth=0.3, zorder=0)
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8)
    return figure


def _draw_curves(
    curves: Mapping[Group, Sequence[Curve]],
    quantity: str,
    references: Sequence[tuple[str, str, float]],
) -> "Figure":
    """The whole training and, unless it is short, its end, each with its own limits."""
    from matplotlib.figure import Figure

    height_ratios, height = ((1, 1.1), 3.9) if _has_end(curves) else ((1,), 2.6)
    height += 0.19 * (len(curves) + len(references) + 1)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    grid = figure.subplots(len(height_ratios), height_ratios=height_ratios, squeeze=False)
    whole, *ends = grid[:, 0]
    tails: list[float] = []
    starts: list[float] = []
    highest = 1.0
    for group, of_group in curves.items():
        xs, ys = _draw_group(whole, group, of_group, quantity)
        for end in ends:
            _draw_group(end, group, of_group, quantity)
        begin = xs.shape[1] * 2 // 3
        starts.append(float(xs[:, begin].mean()))
        highest = max([highest, *(ppl for ppl in ys.flat if math.isfinite(ppl))])
        tails += [ppl for ppl in ys[:, begin:].flat if math.isfinite(ppl)]
    tails = sorted(tails) or [1.0, 10.0]
    lowest, top = tails[0], min(tails[int(0.9 * (len(tails) - 1))], 3 * tails[0])
    floors = [ppl for mark, _, ppl in references if mark == "floor"]
    low = min([lowest, *(ppl for ppl in floors if lowest - ppl < 2 * (top - lowest) + 0.04 * ppl)])
    margin = 0.08 * max(top - low, 0.01 * lowest)
    bottom = 0.97 * min([lowest, *(line[2] for line in references)])
    top_of_whole = min(1.1 * highest, 6 * lowest)
    scale = "log" if top_of_whole > 4 * bottom else "linear"  # which has more ticks
    whole.set(yscale=scale, ylim=(bottom, top_of_whole))
    for end in ends:
        end.set(xlim=(min(starts), None), ylim=(low - margin, top + 2 * margin))
    grid[-1, 0].set_xlabel(AXES[quantity])
    for axes in (whole, *ends):
        first, last = axes.get_ylim()
        for index, (mark, text, ppl) in enumerate(references):
            style = "-" if mark == "floor" else ":"
            axes.axhline(ppl, color=GREY, zorder=1, linewidth=1, linestyle=style, label=f" {text}")
            if mark != "floor" and first < ppl < last:
                place = (1.01 + 0.025 * (index % 3), ppl)  # neighbours side by side
                where: Any = {"transform": axes.get_yaxis_transform(), "va": "center"}
                axes.text(*place, mark, fontsize=7, color=GREY, **where)
        axes.set_ylabel("valid perplexity")
        axes.yaxis.set_major_formatter("{x:.4g}")
        axes.yaxis.set_minor_formatter("{x:.4g}" if axes is whole else "")
        axes.tick_params(axis="y", which="minor", labelsize=7)
        axes.grid(alpha=0.25)
        if quantity == "epochs":
            axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=8)
    return figure


def _draw_group(
    axes: "Axes", group: Group, curves: Sequence[Curve], quantity: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and perplexities, ``(seeds, validations)``, up to the end of the shortest curve."""
    length = min(len(curve.perplexities) for curve in curves)
    xs = np.array([getattr(curve, quantity)[:length] for curve in curves], float)
    ys = np.array([curve.perplexities[:length] for curve in curves], float)
    color, x = _color(group), xs.mean(axis=0)
    dash = _DASHES[(group.number - 1) // len(_COLORS) % len(_DASHES)]
    marker = "." if length < 40 else ""
    # The space: matplotlib hides a label that begins with "_".
    axes.plot(
        x, ys.mean(axis=0), color=color, linestyle=dash, marker=marker, label=f" {group.name}"
    )
    if len(ys) > 1:
        axes.fill_between(x, ys.min(axis=0), ys.max(axis=0), color=color, alpha=0.2, linewidth=0)
    for curve in curves:
        if curve.switch is not None:  # to averaged SGD
            point = (getattr(curve, of)[curve.switch] for of in (quantity, "perplexities"))
            axes.plot(*point, "o", color=color, fillstyle="none", markersize=8)
    return xs, ys
