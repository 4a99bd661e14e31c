"""Pictures of rows: how many times as good as its peer each is, and the bar that it has to reach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import MISSED, Row

GOOD, BAD, PLAIN = "#2a7f62", "#c0392b", "#6c7a89"


def ratios(rows: Iterable[Row], path: Path) -> Path | None:
    """Draw every ratio that has a bar, on a logarithmic scale, bars as marks.

    Returns:
        The picture; None where no row has both. A ratio that is no number above 0 stands on the page alone.
    """
    shown = [row for row in rows if row.bar is not None and row.ratio is not None and 0 < row.ratio < math.inf]
    if not shown:
        return None
    figure, axes = figure_of(10, 1 + 0.28 * len(shown))
    axes.set_xscale("log")
    least = min(0.5, *(0.8 * min(row.ratio or 1, row.bar or 1) for row in shown))
    axes.set_xlim(least, 1.15 * max(max(row.ratio or 1, row.bar or 1) for row in shown))
    for place, row in enumerate(reversed(shown)):
        axes.barh(place, row.ratio, color=BAD if row.verdict == MISSED else GOOD, height=0.6)
        axes.plot([row.bar, row.bar], [place - 0.42, place + 0.42], color="black", linewidth=2)
        axes.text(least, place, f" {row.ratio:.2f}", va="center", fontsize=8, color="white")
    names = [f"{row.benchmark}: {row.row}" + (f" / {row.peer}" if row.peer else "") for row in reversed(shown)]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.axvline(1, color=PLAIN, linewidth=0.8)
    axes.set_xlabel("times as good as the peer; a black mark is the bar")
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 8, 16) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    return save(figure, path)


def curves(lines: dict[str, Sequence[tuple[float, float]]], path: Path, *, x: str, y: str) -> Path:
    """Draw lines through points, by their names."""
    figure, axes = figure_of(8, 4.5)
    for name, points in lines.items():
        axes.plot([point[0] for point in points], [point[1] for point in points], label=name, linewidth=1.4)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return save(figure, path)


def figure_of(width: float, height: float) -> tuple[Any, Any]:
    """An empty picture of so many inches, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "evo"  # the same figures are the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def save(figure: Any, path: Path) -> Path:
    """Write a picture and let go of it."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return path
