"""What was found as text for people and as plain data for scripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from evo_core.config import TrainConfig
from evo_core.estimate.assumptions import Assumptions
from evo_core.estimate.chips import GB
from evo_core.estimate.found import PARTS, Found
from evo_core.estimate.layout import Layout
from evo_core.estimate.reason import reason
from evo_core.estimate.search import Searched

_WORTH_A_LINE = 1e-4
"""Of all that is sent; sums of the loss are less."""

_WORDS = {
    "gathered": "whole weights, fetched for a while",
    "master": "master values",
}


def layout_lines(found: Found, memory: float, assumed: Assumptions) -> Iterator[str]:
    """One layout: a table of memory, one of what is sent, and its time.

    Args:
        memory: bytes of a GPU.
    """
    fits = "" if found.memory <= memory else f": does not fit into {memory / GB:g} GB"
    yield f"memory of rank {found.most.rank}, which needs most, in GB{fits}"
    parts = [(_WORDS.get(part, part), getattr(found.most, part)) for part in PARTS]
    memory_rows = [(name, f"{size / GB:.2f}") for name, size in [*parts, ("in all", found.memory)]]
    yield from _table(memory_rows)
    sent = sorted(found.sent.items(), key=lambda item: -item[1])
    if least := sum(size for _, size in sent) * _WORTH_A_LINE:
        yield "sent by a rank in a step"
        rows = [("collective", "axis", "ranks", "GB", "over")]
        for (collective, axis), size in sent:
            line = found.degrees.line(axis)  # type: ignore[arg-type]
            over = "between nodes" if assumed.across(line) else "inside a node"
            if size >= least:
                rows.append((collective, axis, str(line.size), f"{size / GB:.3f}", over))
        yield from _table(rows, numbers=(2, 3))
    yield f"modelled: {_time(found)}; {reason(found)}"


def best_lines(cfg: TrainConfig, searched: Searched) -> Iterator[str]:
    """The best layouts, each with its reason and the settings to paste."""
    for number, (layout, found) in enumerate(searched.best, 1):
        yield f"{number}. {found.name}: {_time(found)}, {found.memory / GB:.1f} GB"
        yield f"   {reason(found, searched.held_back.get(layout.kind), layout)}"
        yield from (f"   {line}" for line in yaml_lines(layout.settings(cfg)))


def yaml_lines(blocks: dict[str, Any]) -> Iterator[str]:
    """Blocks of settings as YAML, a line for each inner one."""
    for name, block in blocks.items():
        if not any(isinstance(value, dict) for value in block.values()):
            yield f"{name}: {_flow(block)}"
            continue
        yield f"{name}:"
        yield from (f"  {inner}: {_flow(value)}" for inner, value in block.items())


def _flow(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {_scalar(value)}" for name, value in values.items()) + "}"


def _scalar(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _time(found: Found) -> str:
    time = found.time
    return f"{time.seconds:.3g} s a step, {time.tgs:.0f} tokens/GPU/s, mfu {time.mfu:.1%}"


def _table(rows: Iterable[Sequence[str]], numbers: Sequence[int] = (1,)) -> Iterator[str]:
    """Columns two spaces apart, those of numbers to the right."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()


def as_data(found: Found, memory: float) -> dict[str, Any]:
    """A layout for a script; bytes and seconds."""
    time = found.time
    return {
        "layout": found.name,
        "rank": found.most.rank,
        "memory": {**{part: getattr(found.most, part) for part in PARTS}, "total": found.memory},
        "fits": found.memory <= memory,
        "sent": [
            {"collective": collective, "axis": axis, "bytes": size} for (collective, axis), size in found.sent.items()
        ],
        "modelled": {
            "seconds": time.seconds,
            "tgs": time.tgs,
            "mfu": time.mfu,
            "computing": time.computing,
            "bubble": time.bubble,
            "memory": time.memory,
            "updating": time.updating,
            "slowed": time.slowed,
            "waiting": dict(time.waiting),
            "hidden": time.hidden,
        },
    }


def best_data(
    cfg: TrainConfig, layout: Layout, found: Found, held_back: tuple[Layout, int] | None, memory: float
) -> dict[str, Any]:
    """One of the best for a script, with its settings."""
    said = reason(found, held_back, layout)
    return {**as_data(found, memory), "reason": said, "settings": layout.settings(cfg)}
