"""A rank that is stopped in the middle of a pipeline's training: its job ends itself, is started again, same curve."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.endtoend.conftest import HERE, Evo
from tests.endtoend.test_kill import in_the_middle_of, wait_until
from tests.endtoend.test_slurm import TWO_NODES, SlurmEvo
from tests.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.faults, pytest.mark.slow]

TINY = str(HERE / "tiny.yaml")
WATCHED = ["--set", "steps.model.params.monitor={stuck_after: 4s}"]


def rank_one(evo: Evo) -> int:
    """The process of the second rank of the training command."""
    for pid in evo.processes():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        own = b"torch.distributed.run" not in words and b"evo_core.train" in words and b"srun" not in words[0]
        if own and (b"RANK=1" in variables or (b"SLURM_PROCID=1" in variables and not _is_agent(words))):
            return pid
    raise AssertionError("the second rank is not there")


def _is_agent(words: list[bytes]) -> bool:
    return any(b"torch.distributed" in word for word in words)


def goes_on(evo: Evo, whole: Evo, *words: str) -> None:
    run = evo.start("run", TINY, "--no-server", "--targets", "model", *WATCHED, *words)
    wait_until(lambda: in_the_middle_of(evo, "model") or run.poll() is not None)
    os.kill(rank_one(evo), signal.SIGSTOP)
    printed, _ = run.communicate(timeout=240)
    assert run.returncode == 0, printed
    assert "restart 1 of 3" in printed and "no progress" in printed
    (left,) = evo.root.glob("artifacts/train.pretrain-*/work/run-1/stuck-*")
    assert [path.name for path in left.glob("*.txt")] == ["rank-00000.txt"]
    assert [loss for _, loss in evo.curve()] == pytest.approx([loss for _, loss in whole.curve()], rel=1e-5)


def test_on_this_machine(whole: Evo, evo: Evo) -> None:
    goes_on(evo, whole)


@pytest.mark.slurm
@pytest.mark.parametrize("launch", ["torchrun", "srun"])
def test_under_slurm(whole: Evo, tmp_path: Path, slurm: SlurmCluster, launch: str) -> None:
    evo = SlurmEvo(tmp_path, slurm)
    cluster = tmp_path / "test_slurm.yaml"
    cluster.write_text(cluster.read_text() + f"launch: {launch}\n")
    try:
        goes_on(evo, whole, *TWO_NODES)
    finally:
        evo.close()
