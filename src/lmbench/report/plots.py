"""Plots of a section: learning curves and test perplexities, as PNG and as SVG."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmbench.report.bar_plots import draw_bars
from lmbench.report.curve_plots import AXES, curve_alt, curve_caption, curves_of, draw_curves
from lmbench.report.groups import Section
from lmbench.report.published import Published
from lmbench.report.summary import estimate_text, protocol_marks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_GROUPS = 12


@dataclass(frozen=True)
class Plot:
    """A picture.

    Attributes:
        name: Name of its files, without their ending.
        alt: What it shows, in words.
        caption: What is to be read beneath it.
        png: The file.
        svg: The file.
    """

    name: str
    alt: str
    caption: str
    png: bytes
    svg: bytes


def draw_plots(section: Section, published: Sequence[Published]) -> list[Plot]:
    """The learning curves against epochs, tokens and time, and the bars of test perplexity.

    At most twelve groups are drawn, those with the lowest valid perplexity. What no run has
    recorded is left out: the time, or a curve.

    Args:
        section: The groups.
        published: Results to draw beside them, in grey.
    """
    import matplotlib as mpl

    style: Any = {
        "font.size": 9,
        "text.parse_math": False,  # names are no formulas
        "svg.hashsalt": "lmbench",  # the same runs, the same file
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    groups = section.groups[:MOST_GROUPS]
    more = len(section.groups) - len(groups)
    first = f" Only the first {MOST_GROUPS} groups are drawn." if more else ""
    plots = []
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # a box stands for it
        for quantity in AXES:
            drawn = [group for group in groups if curves_of(group, quantity)]
            if drawn:
                figure = draw_curves(section, drawn, quantity, published)
                alt = curve_alt(section, drawn, quantity)
                caption = curve_caption(groups, quantity) + first
                plots.append(_plot(figure, f"curves_{quantity}", alt, caption))
        tested = [group for group in groups if group.perplexity("test")]
        if tested:
            figure = draw_bars(section, tested, published)
            alt = f"Bars of test perplexity on {section.corpus.name}: " + "; ".join(
                f"{group.short_label(80)}: {estimate_text(group.perplexity('test'))}"
                for group in tested
            )
            caption = "Test perplexity: mean over seeds, with its 95% interval." + first
            if len(protocol_marks(section.groups)) > 1:
                caption += " Groups with different marks were not evaluated alike."
            plots.append(_plot(figure, "test_perplexity", alt, caption))
    return plots


def _plot(figure: "Figure", name: str, alt: str, caption: str) -> Plot:
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=200)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return Plot(name, alt, caption, png.getvalue(), svg.getvalue())
