"""The formulas of schedules against the orders that stages really compute in."""

from __future__ import annotations

import pytest

from evo_core.estimate.schedule import schedule
from evo_core.parallel.pipeline.orders import one_forward_one_backward, zero_bubble
from evo_core.parallel.pipeline.placing import Placing
from evo_core.parallel.pipeline.timetable import timetable


@pytest.mark.parametrize(("ranks", "chunks"), [(2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (4, 3), (8, 4)])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_one_forward_one_backward(ranks: int, chunks: int, rounds: int) -> None:
    placing, count = Placing(ranks, chunks), rounds * ranks
    table, said = timetable(placing, one_forward_one_backward(placing, count)), schedule(placing, "1F1B", count)
    assert said.duration == table.duration
    assert said.bubble == pytest.approx(table.bubble / (1 - table.bubble))
    assert list(said.alive) == [table.alive(rank) / chunks for rank in range(ranks)]


@pytest.mark.parametrize("count", [1, 3, 6])
def test_fewer_micro_batches_than_stages(count: int) -> None:
    placing = Placing(8)
    table, said = timetable(placing, one_forward_one_backward(placing, count)), schedule(placing, "1F1B", count)
    assert said.duration == table.duration
    assert list(said.alive) == [table.alive(rank) for rank in range(8)]


@pytest.mark.parametrize(("mode", "placing"), [("ZBH1", Placing(4)), ("ZBV", Placing(4, 2, is_v=True))])
@pytest.mark.parametrize("count", [4, 16, 40])
def test_zero_bubble_schedules_go_on_as_they_begin(mode: str, placing: Placing, count: int) -> None:
    table, said = timetable(placing, zero_bubble(placing, count)), schedule(placing, mode, count)
    assert said.duration == pytest.approx(table.duration)
    assert list(said.alive) == [table.alive(rank) / placing.chunks for rank in range(4)]


def test_one_stage_has_no_bubble() -> None:
    said = schedule(Placing(1), "1F1B", 7)
    assert (said.bubble, said.alive) == (0.0, (1.0,))
