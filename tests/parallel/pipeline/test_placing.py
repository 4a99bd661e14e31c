"""Which rank has which blocks: each block once, in order, as evenly as InternEvo deals them out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_core.model.stage import Stage
from evo_core.parallel.pipeline.placing import Placing
from tests.parallel.pipeline.schedules import UNTIMED, placings


@UNTIMED
@given(placings, st.integers(1, 9), st.data())
def test_every_block_is_on_one_stage_and_in_order(placing: Placing, least: int, data: st.DataObject) -> None:
    of_chunk = least * placing.ranks + data.draw(st.integers(0, placing.ranks - 1), label="remainder of a chunk")
    stages = placing.cut(of_chunk * placing.chunks)
    assert len(stages) == placing.stages
    assert list(itertools.chain(*(stage.blocks for stage in stages))) == list(range(of_chunk * placing.chunks))
    assert [stage.has_embedding for stage in stages] == [True] + [False] * (placing.stages - 1)
    assert [stage.has_head for stage in stages] == [False] * (placing.stages - 1) + [True]
    for chunk in range(placing.chunks):
        sizes = [len(stage.blocks) for stage in stages[chunk * placing.ranks : (chunk + 1) * placing.ranks]]
        assert sizes == sorted(sizes) and sizes[-1] - sizes[0] <= 1, "what is left over is with the last stages"
        assert sum(sizes) == of_chunk


@UNTIMED
@given(placings)
def test_every_stage_is_on_one_rank_and_each_has_as_many(placing: Placing) -> None:
    of_rank = [placing.stages_of(rank) for rank in range(placing.ranks)]
    assert sorted(itertools.chain(*of_rank)) == list(range(placing.stages))
    for rank, stages in enumerate(of_rank):
        assert len(stages) == placing.chunks and list(stages) == sorted(stages)
        assert {placing.rank_of(stage) for stage in stages} == {rank}


def blocks(placing: Placing, layers: int) -> list[list[range]]:
    """Of each rank, stage by stage."""
    stages = placing.cut(layers)
    return [[stages[stage].blocks for stage in placing.stages_of(rank)] for rank in range(placing.ranks)]


@pytest.mark.parametrize(
    ("placing", "layers", "expected"),
    [
        (Placing(2), 5, [[range(2)], [range(2, 5)]]),
        (Placing(4), 6, [[range(1)], [range(1, 2)], [range(2, 4)], [range(4, 6)]]),
        (Placing(2, 2), 6, [[range(1), range(3, 4)], [range(1, 3), range(4, 6)]]),
        (Placing(2, 2, is_v=True), 8, [[range(2), range(6, 8)], [range(2, 4), range(4, 6)]]),
        (Placing(2, 2, is_v=True), 6, [[range(1), range(4, 6)], [range(1, 3), range(3, 4)]]),
        (Placing(1), 3, [[range(3)]]),
    ],
)
def test_by_hand(placing: Placing, layers: int, expected: list[list[range]]) -> None:
    assert blocks(placing, layers) == expected


def test_a_fraction_is_recomputed_of_each_stage() -> None:
    first, second = Placing(2).cut(5)
    assert (first.recomputed(0.5), second.recomputed(0.5)) == (range(1), range(2, 3))
    assert Stage(range(2, 5), has_embedding=False, has_head=True).recomputed(1.0) == range(2, 5)
