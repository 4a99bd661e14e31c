"""What each rank computes, one pass after another: laws of every schedule, and torch's own as a second opinion."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from torch import nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.testing._internal.distributed.fake_pg import FakeStore

from evo_core.parallel.pipeline.orders import Order, Pass, Work
from evo_core.parallel.pipeline.timetable import timetable
from tests.forked import in_a_process
from tests.parallel.pipeline.schedules import MOST_MICRO_BATCHES, MOST_RANKS, UNTIMED, Schedule, schedule, schedules

KINDS = {
    None: {Pass.FORWARD},
    "1F1B": {Pass.FORWARD, Pass.BACKWARD},
    "ZBH1": {Pass.FORWARD, Pass.INPUT, Pass.WEIGHT},
    "ZBV": {Pass.FORWARD, Pass.INPUT, Pass.WEIGHT},
}


@UNTIMED
@given(schedules)
def test_every_pass_is_made_once_and_where_its_stage_is(schedule: Schedule) -> None:
    made = Counter(work for order in schedule.orders for work in order)
    assert set(made.values()) == {1}
    stages, numbers = range(schedule.placing.stages), range(schedule.count)
    assert set(made) == {Work(*each) for each in itertools.product(KINDS[schedule.mode], stages, numbers)}
    for rank, order in enumerate(schedule.orders):
        assert {work.stage for work in order} == set(schedule.placing.stages_of(rank))


@UNTIMED
@given(schedules)
def test_a_rank_makes_the_passes_of_a_micro_batch_in_their_order(schedule: Schedule) -> None:
    for order in schedule.orders:
        place = {work: number for number, work in enumerate(order)}
        for work in order:
            before = {
                Pass.FORWARD: None,
                Pass.BACKWARD: Pass.FORWARD,
                Pass.INPUT: Pass.FORWARD,
                Pass.WEIGHT: Pass.INPUT,
            }[work.kind]
            assert before is None or place[work._replace(kind=before)] < place[work]


@UNTIMED
@given(schedules)
def test_a_stage_takes_micro_batches_as_they_come(schedule: Schedule) -> None:
    """In ascending order for each kind of pass: a step's losses are added up in one order, whatever the schedule."""
    for order in schedule.orders:
        for stage, kind in itertools.product(range(schedule.placing.stages), KINDS[schedule.mode]):
            numbers = [work.micro_batch for work in order if (work.stage, work.kind) == (stage, kind)]
            assert numbers == sorted(numbers)


def test_by_hand() -> None:
    def written(mode: str, rank: int, count: int, ranks: int = 2, chunks: int = 1) -> str:
        return " ".join(map(str, schedule(mode, ranks, count, chunks).orders[rank]))

    assert written("1F1B", 0, 3) == "0F0 0F1 0B0 0F2 0B1 0B2"
    assert written("1F1B", 1, 3) == "1F0 1B0 1F1 1B1 1F2 1B2"
    assert written("1F1B", 0, 1) == "0F0 0B0"
    assert written("1F1B", 1, 2, chunks=2) == "1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1"
    assert written("ZBH1", 1, 2) == "1F0 1I0 1F1 1I1 1W0 1W1"
    assert written("ZBV", 0, 1) == "0F0 3F0 3I0 3W0 0I0 0W0"


LETTERS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
Shape = tuple[str, int, int, int]
"""Mode, ranks, micro-batches, chunks."""


def of_torch(mode: str, ranks: int, count: int, chunks: int) -> list[Order] | None:
    """The orders of torch's schedule, each rank's; None where it has none for so many micro-batches."""
    ours = schedule(mode, ranks, count, chunks)
    device, stages = torch.device("cpu"), ours.placing.stages
    mine = [PipelineStage(nn.Identity(), stage, stages, device) for stage in ours.placing.stages_of(0)]
    make: Any = {
        "1F1B": ScheduleInterleaved1F1B if chunks > 1 else Schedule1F1B,
        "ZBH1": ScheduleInterleavedZeroBubble,
        "ZBV": ScheduleZBVZeroBubble,
    }[mode]
    try:
        theirs = make(mine[0] if make is Schedule1F1B else mine, count)
    except ValueError:
        return None
    orders = theirs._get_pipeline_order() if make is Schedule1F1B else theirs.pipeline_order
    found = [[_work(action) for action in orders[rank] if action is not None] for rank in range(ranks)]
    found = [[work for work in order if work is not None] for order in found]
    if make is Schedule1F1B:  # it is for pictures alone, and counts the last rank's forward passes from 1
        forwards = itertools.count()
        found[-1] = [w._replace(micro_batch=next(forwards)) if w.kind is Pass.FORWARD else w for w in found[-1]]
    return found


def _work(action: Any) -> Work | None:
    letter = LETTERS.get(action.computation_type.name)
    return None if letter is None else Work(Pass(letter), action.stage_index, action.microbatch_index)


SHAPES: list[Shape] = [
    (mode, ranks, count, chunks)
    for ranks in range(2, MOST_RANKS + 1)
    for count in range(1, MOST_MICRO_BATCHES + 1)
    for mode, chunks in (("1F1B", 1), ("1F1B", 2), ("1F1B", 3), ("ZBH1", 1), ("ZBV", 2))
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[Shape, list[Order]]:
    """Torch's orders, by shape: its stages want a process group of as many ranks, which here are not there."""
    answers = tmp_path_factory.mktemp("torch") / "orders"

    def ask() -> None:
        found = {}
        for ranks in range(2, MOST_RANKS + 1):
            dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
            found |= {shape: of_torch(*shape) for shape in SHAPES if shape[1] == ranks}
            dist.destroy_process_group()
        answers.write_bytes(pickle.dumps(found))

    assert in_a_process(ask) == 0
    found = pickle.loads(answers.read_bytes())
    return {shape: orders for shape, orders in found.items() if orders is not None}


def test_where_torch_has_the_same_schedule_it_is_the_same_pass_by_pass(theirs: dict[Shape, list[Order]]) -> None:
    compared: Counter[str] = Counter()
    for (mode, ranks, count, chunks), orders in theirs.items():
        if mode == "1F1B" and chunks > 1 and count % ranks:
            continue
        assert schedule(mode, ranks, count, chunks).orders == orders, (mode, ranks, count, chunks)
        compared[f"{mode}x{chunks}"] += 1
    assert set(compared) == {"1F1Bx1", "1F1Bx2", "1F1Bx3", "ZBH1x1", "ZBVx2"} and min(compared.values()) >= 24


def test_a_last_group_that_is_not_full_is_never_alive_longer_than_in_torch(theirs: dict[Shape, list[Order]]) -> None:
    """Interleaved, torch makes the groups larger instead, at which fewer of them wait and more are in memory."""
    compared = 0
    for (mode, ranks, count, chunks), orders in theirs.items():
        if mode == "1F1B" and chunks > 1 and count % ranks and count > ranks:
            ours = schedule(mode, ranks, count, chunks)
            here, there = ours.timetable, timetable(ours.placing, orders)
            assert all(here.alive(rank) < there.alive(rank) for rank in range(ranks)), (ranks, count, chunks)
            compared += 1
    assert compared >= 10
