"""The tiny pipeline through a real Slurm cluster: two nodes, the same keys and losses, attach, cancel, failure."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.endtoend.conftest import HERE, STEPS, Evo
from tests.flows.orchestration.conftest import read_until
from tests.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.slurm

TINY = str(HERE / "tiny.yaml")
ON_SLURM = ["--set", "vars.cluster=test_slurm.yaml"]
TWO_NODES = [*ON_SLURM, "--set", "steps.model.runtime.nodes=2", "--set", "vars.ranks=1"]


class SlurmEvo(Evo):
    """`evo` in a folder with a cluster file for the test cluster."""

    def __init__(self, folder: Path, cluster: SlurmCluster) -> None:
        super().__init__(folder)
        self.cluster = cluster
        (folder / "test_slurm.yaml").write_text(
            "kind: slurm\npoll_seconds: 0.5\n"
            "environment: {GLOO_SOCKET_IFNAME: lo, OMP_NUM_THREADS: '1'}\n"
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        return super().environment() | {"SLURM_CONF": str(self.cluster.conf)}

    def jobs(self) -> list[str]:
        """Names of the jobs of this store that are queued or running."""
        listed = self.cluster.client("squeue", "-h", "-o", "%j|%T|%Z").splitlines()
        return [line for line in listed if str(self.folder) in line or "evo-" in line]

    def training(self) -> bool:
        return bool(list(self.root.glob("artifacts/train.pretrain-*/work/ckpt/*/manifest.json")))


@pytest.fixture
def evo(tmp_path: Path, slurm: SlurmCluster) -> Iterator[SlurmEvo]:
    evo = SlurmEvo(tmp_path, slurm)
    yield evo
    evo.close()
    for line in evo.jobs():
        slurm.client("scancel", "--name", line.partition("|")[0])


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def test_on_two_nodes_the_keys_and_the_losses_are_those_of_a_local_run(whole: Evo, evo: SlurmEvo) -> None:
    printed = evo("run", TINY, "--no-server", *TWO_NODES)
    assert "7 steps made" in printed
    here, there = whole.plan(TINY), evo.plan(TINY, *TWO_NODES)
    assert {name: here[name]["key"] for name in STEPS} == {name: there[name]["key"] for name in STEPS}
    ours, theirs = evo.curve(), whole.curve()
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    for (_, one), (_, two) in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    assert "step=23" in printed  # its log was followed


def test_a_second_run_attaches_and_a_dead_one_leaves_its_job_alive(whole: Evo, evo: SlurmEvo) -> None:
    often = ["--set", "steps.model.params.ckpt={checkpoint_every: 1}"]
    words = ["run", TINY, "--no-server", "--targets", "model", *TWO_NODES, *often]
    first = evo.start(*words)
    wait_until(evo.training)
    assert len(evo.jobs()) == 1
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    planned = evo.plan(*words[1:2], *words[3:])
    assert planned["model"]["action"] == "attach"
    second, third = evo.start(*words), evo.start(*words)
    for run in (second, third):
        printed, _ = run.communicate(timeout=200)
        assert run.returncode == 0, printed
    submitted = list(evo.root.glob("artifacts/train.pretrain-*/attempts/*"))
    assert [path.name for path in submitted] == ["1"]
    assert [loss for _, loss in evo.curve()] == pytest.approx([loss for _, loss in whole.curve()], rel=1e-5)


def test_a_failure_brings_the_jobs_own_error_back(evo: SlurmEvo) -> None:
    evo("run", TINY, "--no-server", "--targets", "shards")
    shard = next(evo.root.glob("artifacts/data.shard-*/attempts/1/train/en/train_000.bin"))
    shard.write_bytes(shard.read_bytes()[:-100])
    printed = evo("run", TINY, "--no-server", "--targets", "model", *TWO_NODES, status=1)
    assert "train_000.bin" in printed.splitlines()[-1]
    assert evo.jobs() == []


def test_without_a_cluster_a_run_is_refused_before_it_starts(tmp_path: Path) -> None:
    from tests.endtoend.conftest import Evo as Plain

    evo = Plain(tmp_path)
    (tmp_path / "test_slurm.yaml").write_text("kind: slurm\n")
    saved = os.environ.pop("SLURM_CONF", None)
    try:
        evo.plan(TINY, *TWO_NODES)  # planning needs none
        printed = evo("run", TINY, "--no-server", *TWO_NODES, status=2)
    finally:
        if saved is not None:
            os.environ["SLURM_CONF"] = saved
    assert "test_slurm.yaml" in printed
    assert not (evo.root / "artifacts").exists()
    evo.close()


@pytest.mark.slow
def test_a_task_a_rank_under_srun_walks_the_same_curve(whole: Evo, evo: SlurmEvo) -> None:
    """The other way to launch on Slurm: srun starts the ranks, not torchrun."""
    cluster = evo.folder / "test_slurm.yaml"
    cluster.write_text(cluster.read_text() + "launch: srun\n")
    evo("run", TINY, "--no-server", "--targets", "model", *TWO_NODES)
    assert [loss for _, loss in evo.curve()] == pytest.approx([loss for _, loss in whole.curve()], rel=1e-5)
    manifest = json.loads(next(evo.root.glob("artifacts/train.pretrain-*/manifest.json")).read_text())
    assert manifest["provenance"]["runtime"]["nodes"] == 2


def test_a_step_renamed_between_kills_keeps_its_one_job(tmp_path: Path, slurm: SlurmCluster) -> None:
    evo = SlurmEvo(tmp_path, slurm)
    file = tmp_path / "nap.yaml"
    try:
        for turn, name in enumerate(("nap", "rest", "sleep")):
            file.write_text(
                f"pipeline: nap\nsteps:\n  {name}:\n    uses: tests.flows.orchestration.kinds:Sleep\n"
                f"    params: {{until: {tmp_path / 'go'}}}\n    runtime: {{cluster: test_slurm.yaml}}\n"
            )
            run = evo.start("run", str(file), "--no-server")
            if turn < 2:
                wait_until(lambda: evo.jobs() and "RUNNING" in evo.jobs()[0])
                time.sleep(0.5 * turn)
                os.kill(run.pid, signal.SIGKILL)
                run.wait()
        printed = read_until(run, "attached to Slurm job")
        (tmp_path / "go").touch()
        rest, _ = run.communicate(timeout=100)
        assert run.returncode == 0, printed + rest
        key = json.loads(next(evo.root.glob("artifacts/test.sleep-*/manifest.json")).read_text())["key"]
        named = slurm.client("squeue", "-h", "-t", "all", "-o", "%j").split()
        assert len([job for job in named if key[:12] in job]) == 1
        assert evo.jobs() == []
    finally:
        evo.close()


@pytest.mark.slow
def test_a_job_that_no_run_watches_any_more_is_followed_by_its_log(evo: SlurmEvo) -> None:
    run = evo.start("run", TINY, "--no-server", "--targets", "model", *TWO_NODES)
    wait_until(evo.training)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert "step=23" in evo("logs", "model", "-f")
    assert evo.jobs() == []


def test_every_job_of_a_sweep_waits_in_the_clusters_queue(evo: SlurmEvo, tmp_path: Path) -> None:
    """More jobs than steps that run here at a time: which of them has its turn is the cluster's affair."""
    file, go = tmp_path / "sweep.yaml", tmp_path / "go"
    file.write_text(
        "pipeline: sweep\nsteps:\n  nap:\n    uses: tests.flows.orchestration.kinds:Sleep\n"
        f"    foreach: {{n: {[n / 1000 for n in range(12)]}}}\n    params: {{until: '{go}', seconds: '${{each.n}}'}}\n"
        "    runtime: {cluster: test_slurm.yaml}\n"
    )
    run = evo.start("run", str(file), "--no-server")
    wait_until(lambda: len(evo.jobs()) == 12, 60)
    go.touch()
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 0 and "12 steps made" in printed, printed
