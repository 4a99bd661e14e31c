"""Orders with the messages between ranks: none waits for ever, and what a schedule costs is what its formula says."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given

from evo_core.parallel.pipeline.orders import Pass, Work
from evo_core.parallel.pipeline.placing import Placing
from evo_core.parallel.pipeline.timetable import COSTS, Message, Step, Timetable, timetable
from tests.parallel.pipeline.schedules import UNTIMED, Schedule, in_training, schedule, schedules

Sent = tuple[bool, int, int]
"""What goes from one stage to another: forward or back, the stage that takes it, the micro-batch."""


def sent_by(message: Message) -> Sent:
    """What a message brings."""
    to = message.stage + (1 if message.forward else -1) if message.sends else message.stage
    return message.forward, to, message.micro_batch


def wanted_by(work: Work, stages: int) -> Sent | None:
    """What a pass takes from the stage beside its own; None where it takes nothing."""
    if work.kind is Pass.WEIGHT or work.stage == (0 if work.kind is Pass.FORWARD else stages - 1):
        return None
    return work.kind is Pass.FORWARD, work.stage, work.micro_batch


@UNTIMED
@given(schedules)
def test_passes_stay_in_their_order(schedule: Schedule) -> None:
    for order, steps in zip(schedule.orders, schedule.timetable.steps, strict=True):
        assert [step for step in steps if isinstance(step, Work)] == order


@UNTIMED
@given(schedules)
def test_what_a_pass_takes_is_there_and_what_it_makes_is_sent_once(schedule: Schedule) -> None:
    placing, made = schedule.placing, Counter[Sent]()
    for rank, steps in enumerate(schedule.timetable.steps):
        here: set[Sent] = set()
        for step in steps:
            if isinstance(step, Message):
                what = sent_by(step)
                if step.sends:
                    assert what in here, "it is sent before it is made"
                    made[what] += 1
                    here.remove(what)
                else:
                    assert what not in here
                    here.add(what)
                continue
            wanted = wanted_by(step, placing.stages)
            assert wanted is None or wanted in here
            here -= {wanted}
            to = step.stage + (1 if step.kind is Pass.FORWARD else -1)
            if step.kind is not Pass.WEIGHT and 0 <= to < placing.stages:
                here.add((step.kind is Pass.FORWARD, to, step.micro_batch))
        assert not here, f"rank {rank} makes or receives what nobody takes"
    between = sum(placing.rank_of(a) != placing.rank_of(b) for a, b in itertools.pairwise(range(placing.stages)))
    assert set(made.values()) <= {1}
    assert len(made) == between * schedule.count * (1 if schedule.mode is None else 2)


def messages(steps: tuple[Step, ...], peer: int) -> list[tuple[bool, Sent]]:
    """Those that a rank exchanges with another: whether it sends, and what."""
    return [(step.sends, sent_by(step)) for step in steps if isinstance(step, Message) and step.peer == peer]


@UNTIMED
@given(schedules)
def test_two_ranks_agree_on_the_order_of_the_messages_between_them(schedule: Schedule) -> None:
    steps = schedule.timetable.steps
    for one, other in itertools.combinations(range(schedule.placing.ranks), 2):
        there = messages(steps[other], one)
        assert messages(steps[one], other) == [(not sends, what) for sends, what in there]


def rest_of_blocking_ranks(table: Timetable) -> list[list[Step]]:
    """What is left undone where a rank goes on behind a message only when the other rank has come to it too."""
    left = [list(steps)[::-1] for steps in table.steps]
    moved = True
    while moved:
        moved = False
        for rank, mine in enumerate(left):
            while mine:
                step = mine[-1]
                if isinstance(step, Message):
                    theirs = left[step.peer]
                    other = theirs[-1] if theirs else None
                    if not isinstance(other, Message) or other.peer != rank or sent_by(other) != sent_by(step):
                        break
                    theirs.pop()
                mine.pop()
                moved = True
    return left


@UNTIMED
@given(schedules)
def test_ranks_that_wait_for_each_message_at_once_come_to_the_end(schedule: Schedule) -> None:
    assert not any(rest_of_blocking_ranks(schedule.timetable))


def test_the_blocking_ranks_of_these_tests_can_wait_for_ever() -> None:
    first = (Message(True, True, 0, 0, 1), Message(False, False, 0, 0, 1))
    second = (Message(True, False, 1, 0, 0), Message(False, True, 1, 0, 0))
    assert all(rest_of_blocking_ranks(Timetable(Placing(2), (first, second), 0.0, (0.0, 0.0))))


@UNTIMED
@given(schedules)
def test_little_is_received_long_before_it_is_taken(schedule: Schedule) -> None:
    """Memory for what comes is taken when it is expected, however many micro-batches there are."""
    most = 2 * min(schedule.placing.chunks, 2)
    for steps in schedule.timetable.steps:
        waiting: set[Sent] = set()
        for step in steps:
            if isinstance(step, Work):
                waiting -= {wanted_by(step, schedule.placing.stages)}
            elif not step.sends:
                waiting.add(sent_by(step))
            assert len(waiting) <= most


def test_orders_in_which_ranks_wait_for_each_other_are_refused() -> None:
    first, second = schedule("1F1B", 2, 2).orders
    assert [str(work) for work in second] == ["1F0", "1B0", "1F1", "1B1"]
    second = [second[2], second[0], second[1], second[3]]  # it wants the second micro-batch before the first one
    first = [first[0], first[2], first[1], first[3]]  # and gets it when the gradient of the first one has come
    with pytest.raises(ValueError, match="ranks wait for each other before 0B0, 1F1"):
        timetable(Placing(2), [first, second])
    with pytest.raises(ValueError, match="wait for each other"):
        timetable(Placing(1), [[Work(Pass.BACKWARD, 0, 0), Work(Pass.FORWARD, 0, 0)]])


MODES = [("1F1B", 1), ("1F1B", 2), ("1F1B", 3), ("ZBH1", 1), ("ZBV", 2)]


def bubble(mode: str, ranks: int, count: int, chunks: int) -> float | None:
    """The published share of time in which a rank waits (all three passes of a stage take as long); None where there
    is no formula for so many micro-batches."""
    waits = ranks - 1
    if mode == "1F1B":
        return waits / (count * chunks + waits) if chunks == 1 or count % ranks == 0 else None
    if mode == "ZBH1":
        return waits / (3 * count + waits) if count >= ranks else None
    return waits / (6 * count + waits) if count >= 2 * ranks - 1 else None


@pytest.mark.parametrize(("mode", "chunks"), MODES)
def test_the_bubble_is_that_of_its_formula(mode: str, chunks: int) -> None:
    compared = 0
    for ranks, count in itertools.product(range(2, 6), range(1, 21)):
        expected = bubble(mode, ranks, count, chunks)
        if expected is not None:
            found = schedule(mode, ranks, count, chunks).timetable.bubble
            assert found == pytest.approx(expected, rel=1e-12), (ranks, count)
            compared += 1
    assert compared >= 24


@UNTIMED
@given(in_training)
def test_no_schedule_waits_longer_than_its_passes_take_one_after_another(schedule: Schedule) -> None:
    table = schedule.timetable
    work = sum(COSTS[work.kind] for order in schedule.orders for work in order)
    assert table.busy == tuple(sum(COSTS[work.kind] for work in order) for order in schedule.orders)
    assert max(table.busy) <= table.duration <= work
    assert 0 <= table.bubble < 1


@UNTIMED
@given(in_training)
def test_as_many_are_alive_as_the_schedule_promises(schedule: Schedule) -> None:
    ranks, chunks = schedule.placing.ranks, schedule.placing.chunks
    for rank in range(ranks):
        if schedule.mode == "1F1B" and chunks == 1:
            promised = min(ranks - rank, schedule.count)
        elif schedule.mode == "1F1B":
            promised = min(2 * (ranks - 1 - rank) + (chunks - 1) * ranks + 1, schedule.count * chunks)
        else:  # as much as the first rank of 1F1B; each stage of a V is half of what the rank holds
            promised = chunks * min(ranks, schedule.count)
        alive = schedule.timetable.alive(rank)
        assert alive == promised if schedule.mode == "1F1B" and chunks == 1 else 0 < alive <= promised


def test_nothing_is_alive_of_a_pipeline_without_micro_batches() -> None:
    empty = schedule("1F1B", 2, 0).timetable
    assert (empty.steps, empty.bubble, empty.alive(0)) == (((), ()), 0.0, 0)
