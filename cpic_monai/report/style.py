"""
How figures look, and how they get into the page.

Figures are SVG inside the page, so that they stay sharp, are searchable, and follow the page's light and dark colours:
they are drawn in stand-in colours that become CSS variables. They are built on `Figure`, not pyplot, so that a report
written during training meets no figure of anybody else's.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

__all__ = [
    "ACCENT",
    "GRID",
    "INK",
    "MUTED",
    "OTHER",
    "PAPER",
    "RC",
    "WARN",
    "Picture",
    "canvas",
    "number",
    "percent",
    "standalone_svg",
    "svg",
]

# Stand-ins for the page's CSS variables: colours that nothing else has.
INK, MUTED, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
ACCENT, WARN, OTHER = "#0a0b05", "#0a0b06", "#0a0b07"
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--card)",
    ACCENT: "var(--accent)",
    WARN: "var(--warn)",
    OTHER: "var(--other)",
}
# The page's light colours, for figures outside of it.
_LIGHT = {
    "var(--ink)": "#16202b",
    "var(--muted)": "#5b6775",
    "var(--grid)": "#e2e7ec",
    "var(--card)": "#ffffff",
    "var(--accent)": "#1766b5",
    "var(--warn)": "#c2410c",
    "var(--other)": "#0f8a6d",
    "var(--font)": "Helvetica, Arial, sans-serif",
}
RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a subject's name may hold dollar signs
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
}


@dataclass(frozen=True)
class Picture:
    """
    A figure for the page.

    Attributes
    ----------
    markup : Markup
        ``<svg>`` or ``<img>`` that needs nothing outside itself and carries `alt`.
    title, caption : str
        Shown above and below.
    alt : str
        What the figure shows, for those who do not see it.
    tag : str
        One word beside the title, such as "worst".
    """

    markup: Markup
    title: str
    caption: str
    alt: str
    tag: str = ""


def number(value: float | None, digits: int = 3) -> str:
    """A number for reading: at least `digits` significant digits, thousands apart, a dash for none."""
    if value is None or value != value:
        return "–"
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "−∞"
    decimals = 0
    while decimals < 6 and 0 < abs(value) < 10 ** (digits - 1 - decimals):
        decimals += 1
    return f"{value:,.{decimals}f}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "−")


def percent(share: float, _: object = None) -> str:
    """A share as a whole percentage, "75 %"; a dash for none. Serves as a tick formatter too."""
    return "–" if share != share else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one pair of axes; call it, and draw, within ``mpl.rc_context(RC)``."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.grid(True)
    axes.tick_params(length=2.5)
    return figure, axes


def svg(figure: Figure, name: str, alt: str) -> Markup:
    """
    Inline SVG of a figure.

    Parameters
    ----------
    figure : Figure
    name : str
        Unique within a page: ids inside the SVG are derived from it, so that figures do not take each other's clips.
    alt : str

    Returns
    -------
    Markup
    """
    buffer = io.StringIO()
    with mpl.rc_context(RC | {"svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    # Groups are named figure_1, axes_1 … in every figure; nothing refers to them.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"font: ([^\"';]*?px) [^;\"]*", r"font: \1 var(--font)", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    box = re.search(r'viewBox="([^"]*)"', text)
    if box is None:
        raise RuntimeError(f"matplotlib {mpl.__version__} wrote an SVG without a viewBox for the figure {name!r}")
    head = f'<svg viewBox="{box[1]}" role="img" aria-label="{escape(alt)}" preserveAspectRatio="xMidYMid meet">'
    body = text[text.index(">") + 1 :].replace("xlink:href", "href")
    # Safe as markup: matplotlib escapes the text it is given.
    return Markup(head + re.sub(r">\s+<", "><", body.strip()))


def standalone_svg(markup: str) -> str:
    """
    An SVG file of a figure of the page: light colours on white, as a browser or Markdown shows it by itself.

    `markup` is text, no `Markup`, which would escape what is put in.
    """
    for variable, value in _LIGHT.items():
        markup = markup.replace(variable, value)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', markup)
    if box is None:
        raise ValueError(f"not a figure of the page, which has a viewBox from 0 0: {markup[:80]!r}")
    size = f'width="{box[1]}pt" height="{box[2]}pt"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="background: #ffffff"'
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + markup.replace("<svg", head, 1) + "\n"
