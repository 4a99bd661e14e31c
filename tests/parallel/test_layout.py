"""Which ranks form which group."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from evo_core.parallel.layout import make_layout
from tests.ranks import run_on_ranks


def groups(zero1_size: int) -> dict[str, Any]:
    layout = make_layout(zero1_size)
    members = dist.get_process_group_ranks
    return {
        "dp": (layout.dp, layout.dp_rank),
        "zero": (layout.zero1, layout.zero_rank, members(layout.zero_group)),
        "replicas": (layout.replicas, members(layout.replica_group)),
        "data": members(layout.data_group),
        "log": layout.is_log_rank,
    }


def test_zero_groups_are_neighbours_and_replicas_stride_over_them() -> None:
    results = run_on_ranks(groups, 4, 2)
    assert [r["zero"] for r in results] == [(2, 0, [0, 1]), (2, 1, [0, 1]), (2, 0, [2, 3]), (2, 1, [2, 3])]
    assert [r["replicas"] for r in results] == [(2, [0, 2]), (2, [1, 3]), (2, [0, 2]), (2, [1, 3])]
    assert [r["dp"] for r in results] == [(4, 0), (4, 1), (4, 2), (4, 3)]
    assert all(r["data"] == [0, 1, 2, 3] for r in results)
    assert [r["log"] for r in results] == [True, False, False, False]


@pytest.mark.parametrize("size", [-1, 0])
def test_zero_or_less_means_all_data_ranks(size: int) -> None:
    results = run_on_ranks(groups, 2, size)
    assert [r["zero"] for r in results] == [(2, 0, [0, 1]), (2, 1, [0, 1])]


def test_size_one_splits_nothing() -> None:
    results = run_on_ranks(groups, 2, 1)
    assert [r["zero"] for r in results] == [(1, 0, [0]), (1, 0, [1])]
    assert results[0]["replicas"] == (2, [0, 1])


def test_one_process() -> None:
    assert run_on_ranks(groups, 1, -1)[0]["zero"] == (1, 0, [0])


def test_a_size_that_does_not_divide_names_the_nearest() -> None:
    with pytest.raises(RuntimeError, match=r"size 3 does not divide the 4 .*nearest legal size: 2"):
        run_on_ranks(groups, 4, 3)
