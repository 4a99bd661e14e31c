"""The shim over torch's collectives, with the newer names and without."""

from __future__ import annotations

import importlib
import time
import warnings

import pytest
import torch
import torch.distributed as dist

from evo_core.errors import DataError
from evo_core.parallel import collectives
from tests.ranks import run_on_ranks


def exchange(hide_new_names: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if hide_new_names:
        for name in ("reduce_scatter_single", "all_gather_single"):
            if hasattr(dist, name):
                delattr(dist, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if hide_new_names else "error")
        module = importlib.reload(collectives)
        rank, world = dist.get_rank(), dist.get_world_size()
        source = torch.arange(3 * world, dtype=torch.float64) * (rank + 1)
        share, everything = torch.empty(3, dtype=torch.float64), torch.empty(3 * world, dtype=torch.float64)
        module.reduce_scatter(share, source, dist.group.WORLD).wait()
        module.all_gather(everything, share, dist.group.WORLD).wait()
        return share, everything


@pytest.mark.parametrize("hide_new_names", [False, True])
def test_scatter_and_gather(hide_new_names: bool) -> None:
    results = run_on_ranks(exchange, 4, hide_new_names)
    expected = torch.arange(12, dtype=torch.float64) * (1 + 2 + 3 + 4)
    for rank, (share, everything) in enumerate(results):
        assert torch.equal(share, expected[3 * rank : 3 * rank + 3])
        assert torch.equal(everything, expected)


def test_a_sum_on_one_rank() -> None:
    def reduced() -> tuple[torch.Tensor, int]:
        tensor = torch.arange(8.0) * (dist.get_rank() + 1)
        with collectives.counting() as traffic:
            collectives.reduce(tensor, 2, dist.group.WORLD).wait()
        return tensor, traffic.bytes["reduce"]

    found = run_on_ranks(reduced, 4)
    assert torch.equal(found[2][0], torch.arange(8.0) * 10)
    assert [sent for _, sent in found] == [8 * 4 * 3 // 4] * 4


def test_waiting_is_counted_by_what_is_waited_for() -> None:
    def waited() -> tuple[list[str], bool]:
        tensor, everything = torch.ones(2), torch.empty(4)
        with collectives.counting() as traffic:
            works = [collectives.all_reduce(tensor, dist.group.WORLD) for _ in range(2)]
            collectives.all_gather(everything, tensor, dist.group.WORLD).wait()
            seen = list(traffic.waits)
            for work in works:
                work.wait()
        return seen + list(traffic.waits), 0 < traffic.waited == sum(traffic.waits.values())

    assert run_on_ranks(waited, 2) == [(["all_gather", "all_gather", "all_reduce"], True)] * 2


def test_an_error_of_the_first_rank_reaches_all() -> None:
    def ask() -> str:
        def find() -> int:
            raise DataError("nothing there", file="/x", hint="look elsewhere")

        with pytest.raises(DataError) as caught:
            collectives.on_first(find)
        return str(caught.value)

    assert run_on_ranks(ask, 2) == ["/x: nothing there (look elsewhere)"] * 2


def test_an_error_of_any_rank_is_raised_on_all() -> None:
    def ask(failing: list[int]) -> str:
        try:
            with collectives.failing_together():
                if dist.get_rank() in failing:
                    raise DataError(f"nothing on rank {dist.get_rank()}")
        except DataError as error:
            return str(error)
        return "all well"

    assert run_on_ranks(ask, 3, []) == ["all well"] * 3
    assert run_on_ranks(ask, 3, [2]) == ["nothing on rank 2"] * 3
    assert run_on_ranks(ask, 3, [1, 2]) == ["nothing on rank 1"] * 3


def test_what_is_no_mistake_of_the_user_is_raised_on_all_too() -> None:
    def ask() -> list[tuple[str, str]]:
        def fail() -> int:
            raise KeyError("a bug")

        def together() -> None:
            with collectives.failing_together():
                if dist.get_rank() == 1:
                    fail()

        told = []
        for call in (lambda: collectives.on_first(fail), together):
            with pytest.raises(collectives.RankFailed) as caught:
                call()
            told.append((str(caught.value), type(caught.value.__cause__).__name__))
        return told

    first, second = run_on_ranks(ask, 2)
    assert first == [("rank 0: KeyError: 'a bug'", "KeyError"), ("rank 1: KeyError: 'a bug'", "NoneType")]
    assert second == [("rank 0: KeyError: 'a bug'", "NoneType"), ("rank 1: KeyError: 'a bug'", "KeyError")]


def test_one_rank_raises_what_it_met() -> None:
    def ask() -> None:
        with pytest.raises(KeyError):
            collectives.on_first(lambda: {}["nothing"])
        with pytest.raises(KeyError), collectives.failing_together():
            _ = {}["nothing"]

    run_on_ranks(ask, 1)


def test_objects_go_to_the_first_rank_alone() -> None:
    answers = run_on_ranks(lambda: collectives.gather_on_first({"rank": dist.get_rank()}), 3)
    assert answers == [[{"rank": 0}, {"rank": 1}, {"rank": 2}], [], []]


def test_run_on_ranks_passes_on_the_first_error_and_leaves_nobody() -> None:
    def fail() -> None:
        if dist.get_rank() == 1:
            raise ValueError("only here")
        dist.barrier()

    with pytest.raises(RuntimeError, match=r"rank 1 failed(.|\n)*only here"):
        run_on_ranks(fail, 2)


def test_run_on_ranks_ends_what_hangs() -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"ranks \[0, 1\] were not done in time"):
        run_on_ranks(lambda: time.sleep(60), 2, timeout=0.5)
    assert time.monotonic() - began < 10
