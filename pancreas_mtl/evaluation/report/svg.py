"""Matplotlib figures as inline SVG that takes its colours from the page's style sheet.

Figures are drawn in stand-in colours, one per CSS variable, and the SVG then names the variables;
so one drawing reads in light and dark, on screen and on paper. Text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID = "#0a0001", "#0a0002", "#0a0003"
RUNS = tuple(f"#0a001{i}" for i in range(6))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"}
_VARIABLES |= {colour: f"run-{i}" for i, colour in enumerate(RUNS)}

WIDTH_IN = 4.6  # narrow, so that the text stays readable on a phone
WIDTH_LETTERS, SIGN_LETTERS = 64, 7  # of a legend: letters in a row, and a sign with its gaps
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pancreas_mtl",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def new_figure(
    columns: int = 1, *, rows: int = 1, height_in: float = 3.0, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure for one card of the page, and its axes row by row; call it within `style()`."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def style() -> Any:
    """The context in which charts are drawn."""
    return mpl.rc_context(STYLE)


def run_colour(index: int) -> str:
    """The colour of a run, which repeats after the sixth."""
    return RUNS[index % len(RUNS)]


def legend_below(figure: Figure, axes: Axes) -> None:
    """One legend for all axes, under them, unless it would name a single thing."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = max(1, WIDTH_LETTERS // (max(map(len, labels)) + SIGN_LETTERS))
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)))


def to_svg(figure: Figure, *, alt: str, titles: Mapping[str, str] | None = None) -> Markup:
    """Render a figure as an inline `<svg>`.

    Args:
        figure: drawn within `style()`.
        alt: what a reader who cannot see the figure should know.
        titles: tooltips by link, such as `{"#case-0-3": "quiz_2_017: .41"}`.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</defs>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z0-9. ]+_\d+"', "", text)  # figure_1, axes_1, ...: not unique
    box = re.search(r'viewBox="([^"]+)"', text)
    head = f'<svg role="img" aria-label="{escape(alt)}" viewBox="{box[1] if box else ""}">'
    text = head + text[text.index(">") + 1 :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    return Markup(
        re.sub(r'<a xlink:href="([^"]+)"[^>]*>', lambda a: _link(a[1], titles or {}), text)
    )


def _link(href: str, titles: Mapping[str, str]) -> str:
    """A link that the mouse can use; the keyboard has the table of cases."""
    title = f"<title>{escape(titles[href])}</title>" if href in titles else ""
    return f'<a href="{href}" tabindex="-1">{title}'
