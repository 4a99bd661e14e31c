"""A node that is lost while a job runs: the job goes on on other nodes, and the lost one is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.launch.cluster import SlurmCluster, load_cluster
from tasks.launch.launcher import JobFailed
from tasks.launch.left_out import leave_out, read_left_out
from tasks.launch.slurm import SlurmLauncher
from tests.slurm_cluster import SlurmCluster as RunningCluster
from tests.slurm_cluster import found_by_clients, missing_programs, require, slurm_cluster
from tests.tasks.launch.runs import Run, make_job

pytestmark = [pytest.mark.slurm, pytest.mark.faults]


@pytest.fixture(scope="module")
def three() -> Iterator[RunningCluster]:
    """A cluster of three nodes that takes a node for lost within seconds."""
    require(missing_programs())
    with slurm_cluster(3, slurmd_timeout=3) as cluster, found_by_clients(cluster):
        yield cluster


def launcher_for(folder: Path, text: str = "") -> SlurmLauncher:
    file = folder / "three.yaml"
    file.write_text(f"kind: slurm\npoll_seconds: 0.3\nlaunch: srun\n{text}")
    cluster = load_cluster(str(file))
    assert isinstance(cluster, SlurmCluster)
    return SlurmLauncher(cluster)


def test_the_job_goes_on_elsewhere_and_the_node_is_left_out(three: RunningCluster, state: Path, tmp_path: Path) -> None:
    launcher, go = launcher_for(tmp_path), tmp_path / "go"
    run = Run(launcher, make_job(state, "advance", "print:up", f"until:{go}", "print:done", nodes=2))
    run.wait_for_line("up")
    three.kill_node("node2")
    run.wait_for_line("requeued 1 times", 60)
    go.touch()
    run.succeed()
    assert "[evo] node failure on node2; restart 1 of 3" in run.lines
    assert any("left out from now on: node2 (see " in line for line in run.lines)
    assert list(read_left_out(state)) == ["node2"]
    assert run.printed().count("done") == 2 and any("on node[1,3], requeued" in line for line in run.lines)
    three.start_node("node2")

    again = Run(launcher, make_job(state, "environment:SLURMD_NODENAME", nodes=2, attempt=2))
    again.succeed()
    assert sorted(again.printed()) == ["SLURMD_NODENAME=node1", "SLURMD_NODENAME=node3"]
    every = Run(launcher, make_job(state, "environment:SLURMD_NODENAME", nodes=3, attempt=3))
    every.succeed()  # it does not wait for ever for a node that it is kept away from
    assert any("node2 cannot be left out: the job needs 3 nodes, and 2 would remain" in line for line in every.lines)
    assert len(every.printed()) == 3


@pytest.mark.slow
def test_a_job_does_not_go_from_lost_node_to_lost_node_for_ever(
    three: RunningCluster, state: Path, tmp_path: Path
) -> None:
    job = make_job(state, "advance", "print:up", "sleep:100", nodes=2, max_restarts={"node": 0})
    run = Run(launcher_for(tmp_path), job)
    run.wait_for_line("up")
    three.kill_node("node1")
    error = run.end(90)
    three.start_node("node1")
    assert isinstance(error, JobFailed) and "node failure on node1" in error.message


@pytest.mark.slow
def test_ranks_that_fail_twice_for_their_node_are_moved(three: RunningCluster, state: Path, tmp_path: Path) -> None:
    """A broken GPU: the node answers, and what runs there fails."""
    leave_out(state, ["node9"], "was taken away from this cluster")
    run = Run(launcher_for(tmp_path), make_job(state, "advance", "node-is-broken:node1", "print:well"))
    run.succeed(90)
    assert run.printed() == ["well"] and "node1" in read_left_out(state)
    restarts = [line for line in run.lines if "restart" in line]
    assert restarts == [f"[evo] node failure on rank 0 (node1); restart {n} of 3" for n in (1, 2)]
