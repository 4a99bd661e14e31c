"""In which order each rank of a pipeline computes: its schedule, without the messages.

    1F1B          one forward, one backward: at most `stages - rank` micro-batches are alive on a rank
                  (Narayanan et al. 2019, PipeDream; 2021, arXiv:2104.04473, section 2.2.1)
    interleaved   the same over several chunks of the model on each rank: a smaller bubble, more messages
                  (section 2.2.2)
    ZBH1, ZBV     the backward pass in two: the gradient of the input, on which the rank before waits, and later the
                  gradient of the weights, which fills the bubble (Qi et al. 2023, arXiv:2401.10241; ZBV over two
                  chunks in the form of a V)

Any number of micro-batches will do, fewer than stages too: nothing is filled up with empty ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from evo_core.parallel.pipeline.placing import Placing


class Pass(Enum):
    """What is computed; the value is a letter, as torch's schedules print it."""

    FORWARD = "F"
    BACKWARD = "B"
    INPUT = "I"
    """The backward pass to the stage's input alone."""
    WEIGHT = "W"
    """What is left of it: the gradients of the stage's weights."""


class Work(NamedTuple):
    """One pass of one micro-batch through one stage."""

    kind: Pass
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind.value}{self.micro_batch}"


Order = list[Work]
"""What a rank computes, one after another."""


def forward_only(placing: Placing, count: int) -> list[Order]:
    """The order of each rank that computes no gradients."""
    return [
        [Work(Pass.FORWARD, stage, number) for stage, number in _in_groups(placing, count, rank) if number < count]
        for rank in range(placing.ranks)
    ]


def one_forward_one_backward(placing: Placing, count: int) -> list[Order]:
    """1F1B, and with several chunks the interleaved schedule: the order of each rank.

    Micro-batches go through the chunks in groups of as many as there are ranks. It is written for full groups, and what
    there is not is left out. With chunks a rank is twice as many passes ahead as there are ranks behind it, and a group
    more for each other chunk: so much has to be done before its first gradient comes back.
    """
    return [_alternating(placing, count, rank) for rank in range(placing.ranks)]


def _alternating(placing: Placing, count: int, rank: int) -> Order:
    forwards = [Work(Pass.FORWARD, *place) for place in _in_groups(placing, count, rank)]
    backwards = [Work(Pass.BACKWARD, *place) for place in _in_groups(placing, count, rank, backward=True)]
    ahead = placing.ranks - 1 - rank
    if placing.chunks > 1:
        ahead = 2 * ahead + (placing.chunks - 1) * placing.ranks
    ahead = min(ahead, len(forwards))
    order = forwards[:ahead]
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        order += [forward, backward]
    order += backwards[len(forwards) - ahead :]
    return [work for work in order if work.micro_batch < count]


def _in_groups(placing: Placing, count: int, rank: int, *, backward: bool = False) -> Iterator[tuple[int, int]]:
    """Stage and micro-batch of a rank's passes in one direction, the last group filled up."""
    stages = placing.stages_of(rank)
    for first in range(0, count, placing.ranks):
        for stage in reversed(stages) if backward else stages:
            for number in range(first, first + placing.ranks):
                yield stage, number


def zero_bubble(placing: Placing, count: int) -> list[Order]:
    """ZBH1, or over the two chunks of a V the schedule ZBV: the order of each rank."""
    order = _v if placing.is_v else _h1
    return [order(placing, count, rank) for rank in range(placing.ranks)]


def _h1(placing: Placing, count: int, rank: int) -> Order:
    """1F1B whose weights wait: those of rank r for r micro-batches more, so that every rank has as many alive."""
    ahead = min(placing.ranks - 1 - rank, count)
    order = [Work(Pass.FORWARD, rank, number) for number in range(ahead)]
    for number in range(count):
        if ahead + number < count:
            order.append(Work(Pass.FORWARD, rank, ahead + number))
        order.append(Work(Pass.INPUT, rank, number))
        if number >= rank:
            order.append(Work(Pass.WEIGHT, rank, number - rank))
    return order + [Work(Pass.WEIGHT, rank, number) for number in range(max(0, count - rank), count)]


def _v(placing: Placing, count: int, rank: int) -> Order:
    """Down the ranks with the first chunk and up again with the second (section 5 of the paper, figure 6).

    Written for as many micro-batches as fill the pipeline; those that there are not are left out.
    """
    ranks, full = placing.ranks, max(count, 2 * placing.ranks - 1)
    down, up = placing.stages_of(rank)
    numbers: dict[tuple[Pass, int], Iterator[int]] = {
        (kind, stage): iter(range(full)) for kind in (Pass.FORWARD, Pass.INPUT, Pass.WEIGHT) for stage in (down, up)
    }
    order: Order = []

    def add(stage: int, *kinds: Pass, times: int = 1) -> None:
        """Each of some passes of the next micro-batch, where there is one more."""
        for _ in range(times):
            for kind in kinds:
                if (number := next(numbers[kind, stage], full)) < count:
                    order.append(Work(kind, stage, number))

    add(down, Pass.FORWARD, times=2 * (ranks - rank) - 1)
    for _ in range(rank):
        add(up, Pass.FORWARD)
        add(down, Pass.FORWARD)
    add(up, Pass.FORWARD, Pass.INPUT, Pass.WEIGHT, times=ranks - rank)
    for _ in range(full - ranks):
        add(down, Pass.FORWARD, Pass.INPUT, Pass.WEIGHT)
        add(up, Pass.FORWARD, Pass.INPUT, Pass.WEIGHT)
    for _ in range(rank):
        add(down, Pass.INPUT)
        add(up, Pass.INPUT)
    add(down, Pass.INPUT, Pass.WEIGHT, times=ranks - rank)
    add(up, Pass.WEIGHT, times=full)
    add(down, Pass.WEIGHT, times=full)
    return order
