"""A pipeline's step in times of a forward pass, from the orders that the stages really compute in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from evo_core.config import TrainConfig
from evo_core.parallel.degrees import Degrees
from evo_core.parallel.pipeline.orders import one_forward_one_backward, zero_bubble
from evo_core.parallel.pipeline.placing import Placing, placing_of
from evo_core.parallel.pipeline.timetable import Timetable, timetable

_ROUNDS = 4
"""Micro-batches that are laid out, in numbers of ranks: from there on every further one takes as long."""


@dataclass(frozen=True)
class Schedule:
    """A step of a pipeline.

    Attributes:
        busy: time in which a rank computes, in that of a forward pass through one of its stages.
        duration: of the step, in the same.
    """

    busy: float
    duration: float
    _table: Timetable | None

    @property
    def bubble(self) -> float:
        """Time in which a rank waits, over that in which it computes."""
        return self.duration / self.busy - 1

    def alive(self, rank: int) -> float:
        """Micro-batches that a rank of the pipeline keeps at most, in whole ones of all its stages."""
        return 1.0 if self._table is None else self._table.alive(rank) / self._table.placing.chunks


def schedule_of(cfg: TrainConfig, degrees: Degrees) -> Schedule:
    """Of a job at a layout that is legal for it."""
    count = cfg.micro_num(degrees.data)
    return _schedule(placing_of(cfg), cfg.parallel.pipeline.mode, count)


@cache
def _schedule(placing: Placing, mode: str, count: int) -> Schedule:
    busy = 3.0 * count * placing.chunks
    if placing.ranks == 1:
        return Schedule(busy, busy, None)
    few = min(count, _ROUNDS * placing.ranks + count % placing.ranks)
    orders = one_forward_one_backward(placing, few) if mode == "1F1B" else zero_bubble(placing, few)
    table = timetable(placing, orders)
    return Schedule(busy, table.duration + 3.0 * (count - few) * placing.chunks, table)
