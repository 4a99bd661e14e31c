"""In which groups the optimizer has what is gathered, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from evo_core.optim.groups import groups_of
from evo_core.parallel.apply import build_parallel
from evo_core.placement import tiling_fault
from tests.parallel.weight.jobs import EXPERTS, isp, small
from tests.ranks import run_on_ranks


def found(tensor: int, weight: int, zero1: int, settings: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Of each parameter its group, and what this rank has of its state."""
    mesh = isp(tensor, weight, zero1=zero1)
    model = build_parallel(small(num_layers=1, **settings), mesh, "cpu")
    return [
        (
            name,
            {
                "zero": group.zero.ranks,
                "reduce": sorted(axis.ranks for axis in group.reduce if axis.size > 1),
                "replica": sorted(axis.ranks for axis in group.replica if axis.size > 1),
                "divisor": group.divisor,
                "state": [(piece.where, piece.ranks) for piece in group.share(name).pieces],
                "shape": group.placements[name].shape,
            },
        )
        for group in groups_of(model, mesh)
        for name in group.parameters
    ]


def test_weights_by_their_own_axes_and_the_rest_by_the_sequences() -> None:
    """2 ranks share the sequence and 4 each weight: of these no other rank has a part, and two data ranks each the
    embedding's; norms and routers are on all, each of which sees a part of the gradient."""
    results = run_on_ranks(lambda: found(2, 4, 1, EXPERTS), 4)
    for rank, result in enumerate(results):
        data = (rank % 2, rank % 2 + 2)
        for name, got in result:
            assert got["divisor"] == 2
            if name.endswith(("embedding.weight", "head.weight")):
                assert (got["zero"], got["reduce"]) == (data, [data])
            elif name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "gate.wg.weight")):
                tensor = (rank // 2 * 2, rank // 2 * 2 + 1)
                assert (got["zero"], got["reduce"]) == (data, sorted([data, tensor]))
            else:
                assert (got["zero"], got["reduce"], got["replica"]) == ((rank,), [], []), name


@pytest.mark.parametrize(
    ("tensor", "weight", "zero1"), [(2, 2, 1), (4, 2, 2), (1, 2, 2), (2, 1, 4), (4, 4, 1), (1, 4, 1)]
)
def test_the_state_is_in_one_piece_for_each_copy(tensor: int, weight: int, zero1: int) -> None:
    """All that the ranks of a ZeRO group and of those that cut a weight have of it is the whole, each element once."""
    results = [dict(each) for each in run_on_ranks(lambda: found(tensor, weight, zero1, {}), 4)]
    for name, got in results[0].items():
        owned = [
            where for rank, of_rank in enumerate(results) for where, ranks in of_rank[name]["state"] if ranks[0] == rank
        ]
        assert tiling_fault(got["shape"], owned) is None, name
        if "wqkv" in name:
            assert all(len(of_rank[name]["zero"]) == zero1 for of_rank in results)
