"""A timetable: the orders of all ranks of a pipeline with the messages between them, and what runs when.

Every rank works out all of them, and so knows in which order the others send. A message is put into both lists at once,
behind what each of the two ranks has begun by then. So any two ranks agree on the order of the messages between them,
and even ranks that wait for each message as soon as it is posted never wait for each other in a circle: in the order in
which the timetable was made, whatever comes before a message is done without it. NCCL asks for that: all messages
between two ranks, in both directions, go one behind another through one stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from evo_core.parallel.pipeline.orders import Order, Pass, Work
from evo_core.parallel.pipeline.placing import Placing

COSTS: Mapping[Pass, float] = {Pass.FORWARD: 1.0, Pass.BACKWARD: 2.0, Pass.INPUT: 1.0, Pass.WEIGHT: 1.0}
"""Time of each pass through a stage, in that of a forward one: of a product of matrices each of the three takes as
long. The first stage makes no gradient of an input: all of its backward pass is made where the weights' part stands,
and takes as long as both."""


class Message(NamedTuple):
    """What one stage hands to the stage beside it, on another rank: hidden states, or their gradient.

    Attributes:
        sends: on the rank that has it; else it is received.
        forward: hidden states for the next stage; else the gradient for the one before.
        stage: the stage on this rank, whether it sends or receives: those of a pair are neighbours.
        peer: the other rank of the pipeline.
    """

    sends: bool
    forward: bool
    stage: int
    micro_batch: int
    peer: int

    def __str__(self) -> str:
        return f"{self.stage}{'SEND' if self.sends else 'RECV'}_{'F' if self.forward else 'B'}{self.micro_batch}"


Step = Work | Message


@dataclass(frozen=True)
class Timetable:
    """What each rank of a pipeline does in a step.

    Attributes:
        steps: by rank.
        duration: from the first pass to the last, in times of one forward pass through a stage.
        busy: of which each rank computes, by rank.
    """

    placing: Placing
    steps: tuple[tuple[Step, ...], ...]
    duration: float
    busy: tuple[float, ...]

    @property
    def bubble(self) -> float:
        """The share of all ranks' time in which they wait for others."""
        return 1 - sum(self.busy) / (len(self.busy) * self.duration) if self.duration else 0.0

    def alive(self, rank: int) -> int:
        """At most so many forward passes of a rank wait for the end of their backward passes at a time; each counts by
        its stage, which with several chunks is a part of what the rank holds."""
        last = Pass.WEIGHT if any(isinstance(s, Work) and s.kind is Pass.WEIGHT for s in self.steps[rank]) else None
        now = most = 0
        for step in self.steps[rank]:
            if isinstance(step, Work):
                now += step.kind is Pass.FORWARD
                most = max(most, now)
                now -= step.kind is (last or Pass.BACKWARD)
        return most


def timetable(placing: Placing, orders: Sequence[Order]) -> Timetable:
    """Put messages between the passes of each rank.

    Raises:
        ValueError: in these orders ranks would wait for each other for ever.
    """
    return _Maker(placing, orders).made()


class _Maker:
    """Lets the ranks' orders run against each other, the earliest pass first."""

    def __init__(self, placing: Placing, orders: Sequence[Order]) -> None:
        self._placing, self._orders = placing, orders
        self._steps: list[list[Step]] = [[] for _ in orders]
        self._next = [0] * len(orders)
        self._clock = [0.0] * len(orders)
        self._there: dict[tuple[bool, int, int], float] = {}

    def made(self) -> Timetable:
        starts = [self._start(rank) for rank in range(len(self._orders))]
        for _ in range(sum(map(len, self._orders))):
            first = min(starts)
            if first == math.inf:
                waiting = [order[at] for order, at in zip(self._orders, self._next, strict=True) if at < len(order)]
                raise ValueError(f"ranks wait for each other before {', '.join(map(str, waiting))}")
            rank = starts.index(first)
            for changed in self._carry_out(rank, first):
                starts[changed] = self._start(changed)
        busy = tuple(sum(COSTS[work.kind] for work in order) for order in self._orders)
        return Timetable(self._placing, tuple(map(tuple, self._steps)), max(self._clock, default=0.0), busy)

    def _start(self, rank: int) -> float:
        """When a rank's next pass may begin; never where what it needs is not yet made, or nothing is left."""
        if self._next[rank] == len(self._orders[rank]):
            return math.inf
        work = self._orders[rank][self._next[rank]]
        forward, last = work.kind is Pass.FORWARD, self._placing.stages - 1
        needs = [] if work.stage == (0 if forward else last) else [(forward, work.stage, work.micro_batch)]
        if not forward:
            needs.append((True, work.stage + 1, work.micro_batch))  # that its own forward pass was made
        if work.kind is Pass.WEIGHT:
            needs.append((False, work.stage - 1, work.micro_batch))  # as was the first part of the backward pass
        return max(self._clock[rank], *(self._there.get(each, math.inf) for each in needs), 0.0)

    def _carry_out(self, rank: int, start: float) -> set[int]:
        """Make a rank's next pass; return the ranks whose next one may begin at another time now."""
        work = self._orders[rank][self._next[rank]]
        self._next[rank] += 1
        self._clock[rank] = end = start + COSTS[work.kind]
        self._steps[rank].append(work)
        if work.kind is Pass.WEIGHT:
            return {rank}
        forward = work.kind is Pass.FORWARD
        neighbour = work.stage + (1 if forward else -1)
        self._there[forward, neighbour, work.micro_batch] = end
        if not 0 <= neighbour < self._placing.stages:
            return {rank}
        peer = self._placing.rank_of(neighbour)
        if peer != rank:
            self._steps[rank].append(Message(True, forward, work.stage, work.micro_batch, peer))
            self._steps[peer].append(Message(False, forward, neighbour, work.micro_batch, rank))
        return {rank, peer}
