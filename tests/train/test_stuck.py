"""A run that hangs leaves its stacks, tells people, ends with a status of its own, and goes on where it was saved."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evo_core.job import STUCK
from evo_core.parallel.degrees import Degrees
from evo_core.parallel.mesh import make_mesh
from tests.monitor.receiver import receiving, until
from tests.ranks import run_on_ranks
from tests.train.jobs import losses, write_job
from tests.train.processes import Command
from tests.train.test_kill import arguments, survives_under_torchrun, undisturbed

pytestmark = pytest.mark.faults

CHANGES: dict[str, Any] = {"model__dtype": "torch.float32", "data__total_steps": 24, "ckpt__checkpoint_every": 5}


def stopped_at(step: int, rank: str) -> Callable[[int], None]:
    """A hook by which a rank stops itself before it takes the batch of a step."""

    def stop(now: int) -> None:
        if now == step and os.environ.get("RANK", "0") == rank:
            os.kill(os.getpid(), signal.SIGSTOP)

    return stop


def hangs(now: int) -> None:
    """A lone process that never comes to the end of a step."""
    if now == 3:
        time.sleep(1000)


def words(run: Path) -> dict[str, str]:
    """What ranks left, by file name."""
    (folder,) = run.glob("stuck-*")
    return {path.name: path.read_text() for path in folder.iterdir()}


def ended_but(command: Command, left: int) -> bool:
    command.ended()
    return len(command._statuses) == len(command.pids) - left


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_rank_that_is_stopped(tmp_path: Path, ranks: int) -> None:
    expected = undisturbed(tmp_path, ranks=ranks)
    (tmp_path / "state").mkdir()
    with receiving() as found:
        write_job(tmp_path, **CHANGES, monitor={"stuck_after": 2, "alert": {"webhooks": [found.url]}})
        command = Command(
            arguments(tmp_path),
            tmp_path / "log",
            ranks=ranks,
            each_step=stopped_at(8, "1"),
            environment={"EVO_JOB_FOLDER": str(tmp_path / "state")},
        )
        try:
            until(lambda: ended_but(command, 1), 60)
        finally:
            command.kill()
        statuses = command.wait()
        assert [statuses[rank] for rank in range(ranks) if rank != 1] == [STUCK] * (ranks - 1), command.log.read_text()
    left = words(tmp_path / "run")
    assert {name for name in left if name.endswith(".txt")} == {f"rank-0000{r}.txt" for r in range(ranks) if r != 1}
    assert "step.py" in left["rank-00000.txt"] and "thread 'MainThread'" in left["rank-00000.txt"]
    (entry, *_) = json.loads(left["rank-00000.collectives.json"])
    assert entry["profiling_name"].startswith("gloo:")
    (told,) = [message for message in found.messages if message["event"] == "stuck"]
    assert "no rank made progress for " in told["text"] and "no stacks came from rank 1 on " in told["text"]
    error = json.loads((tmp_path / "state" / "error.json").read_text())
    assert error["type"] == "Stuck" and not error["user_error"] and "monitor.stuck_after" in error["message"]

    assert Command(arguments(tmp_path), tmp_path / "log2", ranks=ranks).wait() == [0] * ranks
    assert losses(tmp_path / "run") == expected


@pytest.mark.slow
def test_torchrun_alone_starts_it_again(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path)
    write_job(tmp_path, **CHANGES, monitor={"stuck_after": 3})
    survives_under_torchrun(tmp_path, expected, [(8, 1)], by=signal.SIGSTOP)


@pytest.mark.parametrize(
    ("limits", "setting"),
    [({"stuck_after": 1}, "stuck_after"), ({"start_timeout": 1, "stuck_after": None}, "start_timeout")],
)
def test_a_lone_process(tmp_path: Path, limits: dict[str, Any], setting: str) -> None:
    write_job(tmp_path, **CHANGES, monitor=limits)
    hook = hangs if setting == "stuck_after" else (lambda _: time.sleep(1000))
    command = Command(arguments(tmp_path), tmp_path / "log", each_step=hook)
    assert command.wait() == [STUCK]
    assert f"(monitor.{setting} is 1 s)" in command.log.read_text()
    assert "time.sleep(1000)" in words(tmp_path / "run")["rank-00000.txt"]


def test_time_in_which_a_job_is_suspended_does_not_count(tmp_path: Path) -> None:
    write_job(tmp_path, **CHANGES, monitor={"stuck_after": 1})
    command = Command(arguments(tmp_path), tmp_path / "log", each_step=stopped_at(8, "0"))
    until(lambda: os.waitid(os.P_PID, command.pids[0], os.WSTOPPED | os.WNOHANG | os.WNOWAIT))
    time.sleep(1.5)
    command.kill(number=signal.SIGCONT)
    assert command.wait() == [0], command.log.read_text()


def _timeouts(parallel: dict[str, Any]) -> set[float]:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from evo_core.config.schema.parallel import ParallelConfig

    mesh = make_mesh(Degrees.of(ParallelConfig.model_validate(parallel), 4), timeout=timedelta(seconds=123))
    axes = [mesh.pipeline, mesh.data, mesh.replica, mesh.zero, mesh.tensor, mesh.ends]
    if mesh.tensor.size == 4:
        axes.append(mesh.tensor_run(2))
    if mesh.weights is not None:
        axes += [mesh.weights.cut, mesh.weights.data, mesh.weights.replica, mesh.weights.zero]
    groups = [axis.group for axis in axes if axis is not None and axis.group is not dist.group.WORLD]
    return {group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups}


@pytest.mark.parametrize(
    "parallel",
    [
        {"zero1": {"size": 2}},
        {"tensor": {"size": 4, "mode": "mtp"}},
        {"pipeline": {"size": 4}},
        {"tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 4}},
    ],
)
def test_every_group_waits_as_long(parallel: dict[str, Any]) -> None:
    assert run_on_ranks(_timeouts, 4, parallel) == [{123.0}] * 4
