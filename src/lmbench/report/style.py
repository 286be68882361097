"""How the plots look: colours, dashes and measures."""

from lmbench.report.groups import Group

GREY = "#666666"
WIDTH = 4.6
"""Inches: as wide as a phone at the size in which it is drawn."""
LABEL_LENGTH = 56
"""Characters that fit into that width."""

# Okabe and Ito 2008, told apart by the colour-blind; without yellow, too pale for a line on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.")


def color_of(group: Group) -> str:
    """The same in all plots."""
    return _COLORS[(group.number - 1) % len(_COLORS)]


def dash_of(group: Group) -> str:
    """Tells groups of the same colour apart."""
    return _DASHES[(group.number - 1) // len(_COLORS) % len(_DASHES)]
