"""Curves as SVG, drawn by matplotlib without a display."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence

Curve = tuple[Sequence[float], Sequence[float]]

POINTS = 400
"""More points than a chart is wide in pixels only make the page heavy."""
PALETTE = ("#4c78a8", "#e4572e", "#54a24b", "#b279a2", "#f2a900", "#72b7b2")
TEXT, GRID, PAPER = "#5f6b7a", "#d5dae1", "#ffffff"


def line_chart(
    curves: Mapping[str, Curve], *, x_label: str, y_label: str, size: tuple[float, float] = (7.2, 3.2)
) -> str:
    """An SVG of named curves (x, y). Points that are not finite are left out.

    The colours of text and grid are the constants TEXT and GRID, so that a page can put its own in their place.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "evo", "font.family": "sans-serif"}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for (name, (x, y)), color in zip(curves.items(), PALETTE * 4, strict=False):
            kept = thin([(a, b) for a, b in zip(x, y, strict=True) if b is not None and math.isfinite(b)])
            axes.plot([a for a, _ in kept], [b for _, b in kept], label=name, color=color, linewidth=1.6)
        axes.set_xlabel(x_label, color=TEXT)
        axes.set_ylabel(y_label, color=TEXT)
        axes.tick_params(colors=TEXT, length=3)
        axes.grid(color=GRID, linewidth=0.6)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GRID)
        if len(curves) > 1:
            axes.legend(frameon=False, labelcolor=TEXT, ncols=min(4, len(curves)))
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :].strip()


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about POINTS points, each the mean of a run of neighbours."""
    stride = math.ceil(len(points) / POINTS)
    if stride <= 1:
        return points
    runs = [points[i : i + stride] for i in range(0, len(points), stride)]
    return [(run[-1][0], sum(y for _, y in run) / len(run)) for run in runs]


def data_uri(svg: str) -> str:
    """An SVG on white paper as an address that markdown can show: ``![loss](data:image/svg+xml;base64,...)``."""
    end = svg.index(">") + 1
    paper = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    whole = svg[:end] + paper + svg[end:]
    return "data:image/svg+xml;base64," + base64.b64encode(whole.encode()).decode()


def themed(svg: str) -> str:
    """An SVG for a page of our own: text and grid follow the page's light or dark colours."""
    return svg.replace(TEXT, "var(--soft)").replace(GRID, "var(--line)")
