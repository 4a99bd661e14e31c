"""Which ranks form which axis of the mesh."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.parallel.mesh import Axis
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

AXES = ("world", "pipeline", "data", "replica", "zero", "tensor")


WEIGHT_AXES = {"cut": "weight", "data": "weight_data", "replica": "weight_replica", "zero": "weight_zero"}


def axes(zero1: int, **parallel: Any) -> dict[str, Any]:
    mesh = mesh_of(zero1, **parallel)
    found = {name: getattr(mesh, name) for name in AXES}
    if mesh.weights is not None:
        found |= {name: getattr(mesh.weights, field) for field, name in WEIGHT_AXES.items()}
    for name, axis in found.items():
        assert axis.name == name
        everyone = dist.get_process_group_ranks(axis.group)
        assert (len(everyone), everyone[axis.rank]) == (axis.size, dist.get_rank())
        assert axis.ranks == tuple(everyone)
        numbers: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(numbers, axis.rank)
        assert axis.alike == tuple(rank for rank, number in enumerate(numbers) if number == axis.rank)
        assert sum_over(axis) == sum(everyone)
    members = {name: dist.get_process_group_ranks(axis.group) for name, axis in found.items()}
    return members | {"log": mesh.is_log_rank}


def sum_over(axis: Axis) -> int:
    """The sum of the ranks of an axis, by its own group."""
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total, group=axis.group)
    return int(total)


def test_zero_groups_are_neighbours_and_replicas_stride_over_them() -> None:
    results = run_on_ranks(axes, 4, 2)
    assert [r["zero"] for r in results] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [r["replica"] for r in results] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert all(r["data"] == [0, 1, 2, 3] for r in results)
    assert all(r["world"] == [0, 1, 2, 3] for r in results)
    assert [r["tensor"] for r in results] == [[0], [1], [2], [3]]
    assert [r["log"] for r in results] == [True, False, False, False]


@pytest.mark.parametrize("size", [-1, 0])
def test_zero_or_less_means_all_data_ranks(size: int) -> None:
    assert [r["zero"] for r in run_on_ranks(axes, 2, size)] == [[0, 1], [0, 1]]


def test_size_one_splits_nothing() -> None:
    results = run_on_ranks(axes, 2, 1)
    assert [r["zero"] for r in results] == [[0], [1]]
    assert results[0]["replica"] == [0, 1]


def test_one_process() -> None:
    assert run_on_ranks(axes, 1, -1) == [{name: [0] for name in AXES} | {"log": True}]


def test_tensor_ranks_are_neighbours_and_stages_the_slowest() -> None:
    results = run_on_ranks(lambda: axes(2, tensor=2, pipeline=2), 8)
    assert [r["tensor"] for r in results] == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5], [6, 7], [6, 7]]
    assert [r["data"] for r in results] == [[0, 2], [1, 3], [0, 2], [1, 3], [4, 6], [5, 7], [4, 6], [5, 7]]
    assert [r["zero"] for r in results] == [r["data"] for r in results]
    assert [r["pipeline"] for r in results] == [[0, 4], [1, 5], [2, 6], [3, 7]] * 2


def test_zero_groups_inside_the_data_ranks_of_a_tensor_rank() -> None:
    results = run_on_ranks(lambda: axes(2, tensor=2), 8)
    assert [r["data"] for r in results] == [[0, 2, 4, 6], [1, 3, 5, 7]] * 4
    assert [r["zero"] for r in results] == [[0, 2], [1, 3], [0, 2], [1, 3], [4, 6], [5, 7], [4, 6], [5, 7]]
    assert [r["replica"] for r in results] == [[0, 4], [1, 5], [2, 6], [3, 7]] * 2


def isp(tensor: int, weight: int) -> dict[str, Any]:
    return {"tensor": {"size": tensor, "mode": "isp"}, "weight": {"size": weight}}


def test_weight_ranks_are_neighbours_whatever_ranks_share_the_sequence() -> None:
    results = run_on_ranks(lambda: axes(2, pipeline=2, **isp(1, 2)), 8)
    assert [r["weight"] for r in results] == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5], [6, 7], [6, 7]]
    assert [r["weight_data"] for r in results] == [[0, 2], [1, 3], [0, 2], [1, 3], [4, 6], [5, 7], [4, 6], [5, 7]]
    assert [r["weight_zero"] for r in results] == [r["weight_data"] for r in results]
    assert [r["weight_replica"] for r in results] == [[rank] for rank in range(8)]
    assert [r["data"] for r in results] == [[0, 1, 2, 3]] * 4 + [[4, 5, 6, 7]] * 4


@pytest.mark.parametrize(("ranks", "tensor", "weight"), [(2, 2, 2), (2, 1, 2), (4, 2, 2)])
def test_weights_have_messages_of_their_own(ranks: int, tensor: int, weight: int) -> None:
    """Of one group each message waits for those before it: the sequence's would wait for the next block's weights."""

    def shared() -> list[str]:
        mesh = mesh_of(1, **isp(tensor, weight))
        assert mesh.weights is not None
        return [name for name in AXES if getattr(mesh, name).group is mesh.weights.cut.group]

    assert run_on_ranks(shared, ranks) == [[]] * ranks


def test_a_mesh_may_follow_one_of_many_stages() -> None:
    """Its first and last stage have a group that the others have not, and torch names groups by how many there are."""

    def both() -> int:
        mesh_of(1, pipeline=3)
        mesh = mesh_of(1, **isp(3, 3))
        assert mesh.weights is not None
        return sum_over(mesh.weights.cut)

    assert run_on_ranks(both, 3, timeout=60) == [3] * 3


def test_the_first_rank_is_the_worlds_at_every_layout() -> None:
    """Two stages and two tensor ranks have four first data ranks; one of all ranks logs."""
    assert [r["log"] for r in run_on_ranks(lambda: axes(1, tensor=2, pipeline=2), 4)] == [True, False, False, False]


def of_weights(zero1: int, **parallel: Any) -> dict[str, Any]:
    """The ranks of all axes, isp's among them."""
    mesh = mesh_of(zero1, **parallel)
    assert mesh.weights is not None
    found = {name: getattr(mesh.weights, name) for name in ("cut", "data", "replica", "zero")}
    others = {name: getattr(mesh, name) for name in AXES}
    assert all(found["cut"].group is not other.group for other in others.values())
    for axis in found.values():
        assert sum_over(axis) == sum(axis.ranks)
        assert axis.ranks[axis.rank] == dist.get_rank() and axis.size == len(axis.ranks)
    return {name: axis.ranks for name, axis in others.items()} | {
        f"weights.{name}": axis.ranks for name, axis in found.items()
    }


def test_weights_lie_on_neighbours_and_may_span_those_that_share_a_sequence() -> None:
    results = run_on_ranks(lambda: of_weights(1, tensor={"size": 2, "mode": "isp"}, weight={"size": 4}), 4)
    assert all(r["weights.cut"] == (0, 1, 2, 3) for r in results)
    assert [r["weights.data"] for r in results] == [(0,), (1,), (2,), (3,)]
    assert [r["tensor"] for r in results] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert [r["data"] for r in results] == [(0, 2), (1, 3), (0, 2), (1, 3)]


def test_weights_on_fewer_ranks_than_share_a_sequence() -> None:
    results = run_on_ranks(lambda: of_weights(2, tensor={"size": 4, "mode": "isp"}, weight={"size": 2}, pipeline=2), 8)
    assert [r["weights.cut"] for r in results] == [(0, 1), (0, 1), (2, 3), (2, 3), (4, 5), (4, 5), (6, 7), (6, 7)]
    assert [r["weights.data"] for r in results] == [(0, 2), (1, 3), (0, 2), (1, 3), (4, 6), (5, 7), (4, 6), (5, 7)]
    assert [r["weights.zero"] for r in results] == [r["weights.data"] for r in results]
    assert [r["weights.replica"] for r in results] == [(rank,) for rank in range(8)]
    assert [r["pipeline"] for r in results] == [(0, 4), (1, 5), (2, 6), (3, 7)] * 2


def test_other_modes_gather_nothing() -> None:
    assert run_on_ranks(lambda: mesh_of(1, tensor=2).weights, 2) == [None, None]
    alone: dict[str, Any] = {"tensor": {"size": 1, "mode": "isp"}}
    assert run_on_ranks(lambda: mesh_of(1, **alone).weights, 2) == [None, None]


def test_a_size_that_does_not_divide_names_the_nearest() -> None:
    with pytest.raises(RuntimeError, match=r"size: 3 does not divide the 4 .*nearest: 2 or 4"):
        run_on_ranks(axes, 4, 3)
