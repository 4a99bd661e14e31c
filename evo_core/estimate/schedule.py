"""A pipeline's step in times of a forward pass, and the micro-batches that a rank keeps.

1F1B and the interleaved schedule by the formulas of docs/parallelism.md, since a search asks for thousands; the others
from the orders that the stages compute in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from evo_core.config import TrainConfig
from evo_core.parallel.degrees import Degrees
from evo_core.parallel.pipeline.orders import zero_bubble
from evo_core.parallel.pipeline.placing import Placing, placing_of
from evo_core.parallel.pipeline.timetable import timetable

_PASSES = 3.0
"""Time of a micro-batch in a stage, forward and backward, in that of a forward pass."""

_ROUNDS = 4
"""Micro-batches that are laid out, in numbers of ranks: from there on every further one takes as long."""


@dataclass(frozen=True)
class Schedule:
    """A step of a pipeline.

    Attributes:
        busy: time in which a rank computes, in that of a forward pass through one of its stages.
        duration: of the step, in the same.
        alive: micro-batches that each rank keeps at most, in whole ones of all its stages.
    """

    busy: float
    duration: float
    alive: tuple[float, ...]

    @property
    def bubble(self) -> float:
        """Time in which a rank waits, over that in which it computes."""
        return self.duration / self.busy - 1


def schedule_of(cfg: TrainConfig, degrees: Degrees) -> Schedule:
    """Of a job at a layout that is legal for it."""
    return schedule(placing_of(cfg), cfg.parallel.pipeline.mode, cfg.micro_num(degrees.data))


@cache
def schedule(placing: Placing, mode: str, count: int) -> Schedule:
    """Of so many micro-batches through the stages of a placing."""
    ranks, chunks = placing.ranks, placing.chunks
    busy = _PASSES * count * chunks
    if ranks == 1:
        return Schedule(busy, busy, (1.0,))
    if mode == "1F1B":
        return Schedule(busy, busy + _PASSES * (ranks - 1), tuple(_kept(placing, count, rank) for rank in range(ranks)))
    few = min(count, _ROUNDS * ranks)
    table = timetable(placing, zero_bubble(placing, few))
    alive = tuple(table.alive(rank) / chunks for rank in range(ranks))
    return Schedule(busy, table.duration + _PASSES * (count - few) * chunks, alive)


def _kept(placing: Placing, count: int, rank: int) -> float:
    ranks, chunks = placing.ranks, placing.chunks
    most = ranks - rank if chunks == 1 else ranks + (ranks - 2 * rank - 1) / chunks
    return min(count, most)
