"""What people are told of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "start", "restart", "end", "exception", "signal", "stop file", "overflow", "loss spike", "stuck", "slow rank"
]

REPEATED: frozenset[Kind] = frozenset({"overflow", "loss spike", "slow rank"})
"""What may happen at every step, and is told now and then."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    Attributes:
        text: what, for people; its first line says it all.
        step: where the run was; None before it has begun.
        time: when, unix seconds.
        rank: that tells it.
    """

    kind: Kind
    text: str
    step: int | None
    time: float
    rank: int
