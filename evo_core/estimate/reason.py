"""Why a layout is as fast as it is, and what keeps it from being faster, in words."""

from __future__ import annotations

from evo_core.estimate.found import Found
from evo_core.estimate.layout import Layout

_WORTH_NAMING = 0.01
_SAID = {
    "checkpoint": "recompute",
    "mode": "mode",
    "weight": "weight",
    "zero1": "zero1",
    "schedule": "pipeline.mode",
    "chunks": "chunks",
    "expert": "expert",
}
"""The settings in which layouts of a kind differ."""


def reason(found: Found, held_back: tuple[Layout, int] | None = None, layout: Layout | None = None) -> str:
    """A sentence: what the step's time goes to, then what memory forbids.

    Args:
        held_back: a faster layout of the same kind that does not fit, and the bytes that it needs.
        layout: this one.
    """
    time = found.time
    parts = {
        "the bubble": time.bubble,
        "passes over memory": time.memory,
        "products of the update": time.updating,
        "what is sent beside it": time.slowed,
    }
    for name, seconds in time.waiting.items():
        where = "between machines" if name in time.network else "inside a machine"
        parts[f"{name} {where}"] = seconds
    shares = {name: seconds / time.seconds for name, seconds in parts.items()}
    named = [f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=_largest) if share >= _WORTH_NAMING]
    words = f"computing is {time.computing / time.seconds:.0%} of the step"
    words += f", {', '.join(named[:3])}" if named else ""
    if held_back is not None and layout is not None:
        other, needs = held_back
        words += f"; memory forbids {_difference(other, layout)} ({needs / 10**9:.3g} GB)"
    return words


def _largest(item: tuple[str, float]) -> float:
    return -item[1]


def _difference(other: Layout, layout: Layout) -> str:
    """The settings in which two layouts of a kind differ, as the other has them."""
    differing = [
        f"{said} {getattr(other, name)}"
        for name, said in _SAID.items()
        if getattr(other, name) != getattr(layout, name)
    ]
    return " with ".join(differing)
