"""Who is slow is named, and nobody else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from evo_core.config import TrainConfig
from evo_core.monitor.diagnosis import Diagnosis, slow_ranks, slower_ranks, trimmed_mean
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.mesh import make_mesh
from evo_core.train.reading import Reading
from evo_core.train.step import TrainStep
from evo_core.train.timers import Timers
from tests.monitor.receiver import Receiver, receiving
from tests.ranks import run_on_ranks
from tests.train.jobs import job, run


@pytest.mark.parametrize(
    ("seconds", "ratio", "slow"),
    [
        ([1, 1, 1, 1, 2], 1.1, [4]),
        ([0.1, 0.1, 0.1, 0.1, 0.9], 1.1, []),  # the mean without the extremes is below half a second
        ([1, 1, 1.09], 1.1, []),
        ([0.1, 1.1], 1.1, [1]),
        ([1, 1], 1.0, []),
        ([5], 1.1, []),
    ],
)
def test_slower_than_the_others(seconds: list[float], ratio: float, slow: list[int]) -> None:
    assert slow_ranks(np.array(seconds), ratio) == slow


def test_the_mean_of_many_is_without_the_extremes() -> None:
    assert trimmed_mean([1, 1, 1, 1]) == 1
    assert trimmed_mean([0, 1, 1, 1, 100]) == 1


def test_slower_than_its_own_past() -> None:
    past = [np.array([1.0, 1.0, 0.1])] * 5
    assert slower_ranks(np.array([1.0, 1.2, 0.4]), past, 1.1) == [1]
    assert slower_ranks(np.array([1.0, 1.2, 0.4]), past[:4], 1.1) == []


@pytest.mark.parametrize(("ratio", "slow"), [(1.5, False), (1.1, True), (0.5, True)])
def test_it_is_clamped_and_read_from_the_job(tmp_path: Path, ratio: float, slow: bool) -> None:
    """Two ranks of 1.0 and 1.4 s, whose mean is 1.2 s, by data.diag_outlier_ratio."""
    said = run_on_ranks(_said, 2, job(tmp_path, data__diag_outlier_ratio=ratio))
    named = [line for line in said[0] if "rank 1 on b (1.400 s)" in line]
    assert bool(named) == slow and not said[1]
    assert not any("rank 0" in line for line in said[0])


def _said(cfg: TrainConfig) -> list[str]:
    rank, told = dist.get_rank(), list[str]()
    world = make_mesh(cfg.degrees(2)).world
    tell = told.append if rank == 0 else None
    diagnosis = Diagnosis(cfg.data.diag_outlier_ratio, world, ["a", "b"], torch.device("cpu"), tell)
    diagnosis.add(Timers(0.0, 1.0 + 0.4 * rank, 9.0 - rank, 0.0))
    diagnosis.diagnose()
    return told


def _late(folder: Path, url: str, where: str, tensor: int, fsdp: bool) -> None:
    sleeper = 0 if where == "data" else 1
    owner, name = {
        "data": (Reading, "batch"),
        "forward and backward": (TrainStep, "forward_backward"),
        "update": (Zero1AdamW, "_adamw"),
    }[where]
    original = getattr(owner, name)

    def slowed(self: Any, *args: Any) -> Any:
        if dist.get_rank() == sleeper:
            time.sleep(1.2)
        return original(self, *args)

    setattr(owner, name, slowed)
    cfg = job(
        folder,
        data__total_steps=2,
        data__empty_cache_and_diag_interval=2,
        monitor={"alert": {"webhooks": [url]}},
        ckpt__enable_save_ckpt=False,
        parallel={"tensor": {"size": tensor, "mode": "mtp"}, "zero1": {"size": -1, "fsdp": fsdp}},
    )
    run(cfg, folder / "run")


@pytest.mark.parametrize(
    ("where", "ranks", "tensor", "fsdp", "named"),
    [
        ("forward and backward", 2, 1, False, 1),
        ("forward and backward", 2, 2, False, 1),
        ("update", 2, 1, False, 1),
        ("data", 4, 2, False, 0),
        pytest.param("forward and backward", 2, 1, True, 1, marks=pytest.mark.slow),
        ("data", 2, 1, True, 0),
    ],
)
def test_a_rank_that_sleeps_is_named_with_its_host(
    tmp_path: Path, where: str, ranks: int, tensor: int, fsdp: bool, named: int
) -> None:
    job(tmp_path)
    with receiving() as found:
        run_on_ranks(_late, ranks, tmp_path, found.url, where, tensor, fsdp)
    (message,) = [message for message in found.messages if message["event"] == "slow rank"]
    assert f"slow in {where}: rank {named} on " in message["text"]
    assert message["text"].count("rank ") == 1
    assert Receiver.SECRET not in (tmp_path / "run" / "train.log").read_text()
