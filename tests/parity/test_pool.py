"""Ranks that take one task after another, and what is said of one that fails, dies or hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from evo_core.parity.pool import Pool, RankError
from evo_core.process import start_time


def rank_and_sum(value: int) -> tuple[int, int, float]:
    total = torch.tensor(float(dist.get_rank() + value))
    dist.all_reduce(total)
    return os.getpid(), dist.get_rank(), total.item()


def fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ValueError("the pieces do not fit")
    dist.barrier()


def die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def hang_on(rank: int) -> None:
    if dist.get_rank() == rank:
        signal.pause()


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2, timeout=60.0) as pool:
        yield pool


def test_the_same_ranks_take_one_task_after_another(pool: Pool) -> None:
    first, second = pool.run(rank_and_sum, 1), pool.run(rank_and_sum, 2)
    assert [answer[1:] for answer in first] == [(0, 3.0), (1, 3.0)]
    assert [answer[1:] for answer in second] == [(0, 5.0), (1, 5.0)]
    assert [answer[0] for answer in first] == [answer[0] for answer in second]


@pytest.mark.parametrize(
    ("task", "said"),
    [(fail_on, r"(?s)rank 1 failed:.*the pieces do not fit"), (die_on, "rank 1 was killed by signal 9")],
)
def test_a_rank_that_fails_or_dies_is_named_and_the_next_ones_are_new(pool: Pool, task: object, said: str) -> None:
    before = pool.run(rank_and_sum, 0)
    with pytest.raises(RankError, match=said):
        pool.run(task, 1)  # type: ignore[arg-type]
    assert all(start_time(pid) is None for pid, *_ in before)
    assert [answer[1:] for answer in pool.run(rank_and_sum, 1)] == [(0, 3.0), (1, 3.0)]


def test_a_rank_that_was_killed_between_two_tasks_is_named(pool: Pool) -> None:
    victim = pool.run(rank_and_sum, 0)[1][0]
    os.kill(victim, signal.SIGKILL)
    while start_time(victim) is not None:
        time.sleep(0.01)
    with pytest.raises(RankError, match=r"ranks? (1 was killed by signal 9|\[1\] ended between two tasks)"):
        pool.run(rank_and_sum, 0)


def test_a_rank_that_hangs_is_told_with_where_it_does() -> None:
    with Pool(2, timeout=1.0) as pool, pytest.raises(RankError, match=r"(?s)ranks \[1\] were not done.*in hang_on"):
        pool.run(hang_on, 1)


def test_ranks_end_with_the_process_that_wanted_them() -> None:
    code = (
        "import os, signal; from evo_core.parity.pool import Pool; from tests.parity.test_pool import rank_and_sum\n"
        "pool = Pool(2, timeout=60.0); print(*[a[0] for a in pool.run(rank_and_sum, 0)], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pids = [int(word) for word in ended.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(start_time(pid) is not None for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
