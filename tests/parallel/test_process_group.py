"""Joining and leaving the process group, signals, and the death of a parent."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.errors import ConfigError
from evo_core.job import command
from evo_core.parallel import process_group as module
from evo_core.parallel.process_group import Stop, ranks
from evo_core.process import start_time
from tests.ranks import run_on_ranks
from tests.train.processes import free_port


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_has_a_group_and_leaves_it() -> None:
    for _ in range(2):
        with ranks() as joined:
            assert (joined.rank, joined.world_size, joined.launcher) == (0, 1, "single")
            assert joined.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
            dist.all_reduce(torch.ones(1))
        assert not dist.is_initialized()


def test_one_process_leaves_it_after_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), ranks():
        raise ZeroDivisionError
    assert not dist.is_initialized()


def test_a_group_that_is_there_is_used_and_left_alone() -> None:
    def body() -> tuple[int, int, bool]:
        with ranks() as joined:
            result = joined.rank, joined.world_size
        return *result, dist.is_initialized()

    assert run_on_ranks(body, 3) == [(0, 3, True), (1, 3, True), (2, 3, True)]


def test_many_ranks_join_and_leave_by_the_environment() -> None:
    """Ten times in a row: nobody may break the others by leaving."""
    ports = [free_port() for _ in range(10)]

    def body() -> int:
        rank, world = dist.get_rank(), dist.get_world_size()
        dist.destroy_process_group()
        joined_times = 0
        for port in ports:
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            with ranks("torch") as joined:
                total = torch.tensor([joined.rank])
                dist.all_reduce(total)
                joined_times += int(total) == 3
        return joined_times

    assert run_on_ranks(body, 3) == [10, 10, 10]


def test_signals_are_caught_only_where_asked() -> None:
    default = signal.getsignal(signal.SIGTERM)
    with ranks(catch_stop=True) as joined:
        os.kill(os.getpid(), signal.SIGTERM)
        assert joined.stop.requested
        assert joined.stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == default
    with ranks():
        assert signal.getsignal(signal.SIGTERM) == default


def test_an_echo_is_the_same_request_and_a_later_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    monkeypatch.setattr(module.os, "_exit", ended.append)
    stop = Stop()
    stop.handle(signal.SIGINT, None)
    now += 1
    stop.handle(signal.SIGTERM, None)
    assert (stop.signal, ended) == (signal.SIGINT, [])
    now += 10
    stop.handle(signal.SIGTERM, None)
    assert ended == [143]


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("frame", [ranks, partial(command, "evo_core.train")])
@pytest.mark.parametrize(("name", "value"), [("EVO_DIE_WITH_PARENT", "1"), ("TORCHELASTIC_RUN_ID", "none")])
def test_a_rank_dies_with_its_launcher(name: str, value: str, frame: Callable[[], AbstractContextManager[Any]]) -> None:
    """A pipeline's, and a torchrun that a person started; as soon as the command has begun, and without one."""
    read_end, write_end = os.pipe()
    parent = os.fork()
    if parent == 0:
        child = os.fork()
        if child == 0:
            os.environ[name] = value
            with frame():
                os.write(write_end, b"%d\n" % os.getpid())
                time.sleep(60)
                os._exit(0)
        time.sleep(60)
        os._exit(0)
    child = int(os.read(read_end, 32))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 10
    while start_time(child) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert start_time(child) is None


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the parent-death signal is Linux's")
def test_a_task_of_slurms_and_a_lone_process_may_outlive_what_started_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm ends its tasks by itself; who starts a run in a shell may close it."""
    for name in ("EVO_DIE_WITH_PARENT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "0")
    with ranks("slurm"):
        signal_at_death = ctypes.c_int(-1)
        assert ctypes.CDLL(None).prctl(2, ctypes.byref(signal_at_death)) == 0  # PR_GET_PDEATHSIG
        assert signal_at_death.value == 0


def test_a_rank_whose_agent_died_while_it_started_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))  # held, and nobody listens
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"nobody answers at 127\.0\.0\.1:\d+: the torchrun"), ranks():
        raise AssertionError
    assert time.monotonic() - began < 10
