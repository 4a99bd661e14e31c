"""Slurm jobs and the runs that started them: who may end one, and who leaves it running."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.orchestration.conftest import (
    REPOSITORY,
    Api,
    is_over,
    kill_with_its_runs,
    read_until,
    running_worker,
    settled,
    start,
    submit,
)
from tests.flows.orchestration.small import Small
from tests.slurm_cluster import SlurmCluster, slurm

__all__ = ["slurm"]
pytestmark = [pytest.mark.ui, pytest.mark.slurm]

TEXT = """\
pipeline: sleepy
steps:
  nap:
    uses: tests.flows.orchestration.kinds:Sleep
    params: {seconds: 300}
    runtime: {cluster: FILE}
"""


class Sleepy(Small):
    """A pipeline of one job on the test cluster."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        cluster = folder / "cluster.yaml"
        cluster.write_text(f"kind: slurm\npoll_seconds: 0.3\nenvironment: {{PYTHONPATH: {REPOSITORY}}}\n")
        self.file.write_text(TEXT.replace("FILE", str(cluster)))


@pytest.fixture
def sleepy(tmp_path: Path) -> Sleepy:
    return Sleepy(tmp_path)


@pytest.fixture(scope="module")
def clients(slurm: SlurmCluster, environment: dict[str, str]) -> dict[str, str]:
    return environment | {"SLURM_CONF": str(slurm.conf)}


@pytest.fixture(scope="module")
def worker(deployments: object, clients: dict[str, str], checkout: Path) -> Iterator[None]:
    with running_worker(clients, checkout):
        yield


@pytest.fixture
def running(slurm: SlurmCluster) -> Iterator[Any]:
    """Ids of running jobs; whatever runs at the end of the test is cancelled."""

    def ids() -> list[str]:
        return slurm.client("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()

    yield ids
    for job in ids():
        slurm.client("scancel", job)
    settled(ids, lambda left: not left)


def test_cancelling_a_run_ends_the_job_that_it_started(
    worker: None, running: Any, api: Api, deployments: Any, sleepy: Sleepy
) -> None:
    run = submit(api, deployments, sleepy)
    jobs = settled(running, bool, 60)
    assert len(jobs) == 1
    api.ask(f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    assert settled(running, lambda left: not left) == []
    assert settled(lambda: api.get(f"flow_runs/{run}"), is_over)["state_type"] == "CANCELLED"
    log = settled(lambda: api.log({"id": run}), lambda log: "jobs of this run" in log)
    assert "jobs of this run that were cancelled with it: nap: " in log and jobs[0] in log


@pytest.mark.slow
def test_a_job_survives_sigterm_of_its_run_and_cancelling_one_that_attached(
    worker: None, running: Any, api: Api, deployments: Any, clients: dict[str, str], sleepy: Sleepy
) -> None:
    first = start("evo", "run", str(sleepy.file), "--root", str(sleepy.root), environment=clients)
    read_until(first, "nap: started")
    jobs = settled(running, bool, 60)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=30)
    assert first.returncode == 143, out
    assert running() == jobs

    second = submit(api, deployments, sleepy)
    settled(lambda: api.artifacts({"id": second}), lambda pages: "sleepy-plan" in pages, 60)
    assert '"action": "attach"' in api.artifacts({"id": second})["sleepy-plan"]["data"]
    settled(lambda: api.tasks({"id": second}), lambda tasks: running_task(tasks.get("nap")))
    api.ask(f"flow_runs/{second}/set_state", state={"type": "CANCELLING"})
    assert settled(lambda: api.get(f"flow_runs/{second}"), is_over, 60)["state_type"] == "CANCELLED"
    log = settled(lambda: api.log({"id": second}), lambda log: "jobs of this run" in log)
    assert "none was running" in log
    assert running() == jobs


@pytest.mark.slow
@pytest.mark.faults
def test_a_job_survives_kill_9_of_its_worker_and_run_and_the_next_run_attaches(
    running: Any, api: Api, deployments: Any, clients: dict[str, str], checkout: Path, sleepy: Sleepy
) -> None:
    often = clients | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
    worker = start("prefect", "worker", "start", "--pool", "evo", environment=often, cwd=checkout)
    try:
        submit(api, deployments, sleepy)
        jobs = settled(running, bool, 60)
    finally:
        kill_with_its_runs(worker)
    assert len(jobs) == 1 and running() == jobs
    second = start("evo", "run", str(sleepy.file), "--root", str(sleepy.root), environment=clients)
    read_until(second, "attached to Slurm job")
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=30)
    assert running() == jobs


@pytest.mark.slow  # without a server: tests/endtoend/test_slurm.py
def test_two_runs_started_together_share_one_job_and_both_are_green(
    running: Any, slurm: SlurmCluster, api: Api, clients: dict[str, str], sleepy: Sleepy
) -> None:
    sleepy.file.write_text(sleepy.file.read_text().replace("seconds: 300", "seconds: 6"))
    words = ("evo", "run", str(sleepy.file), "--root", str(sleepy.root))
    before = len(slurm.jobs())
    runs = [start(*words, environment=clients) for _ in range(2)]
    for run in runs:
        out, _ = run.communicate(timeout=90)
        assert run.returncode == 0, out
    assert len(slurm.jobs()) == before + 1
    found = settled(lambda: api.flow_runs(sleepy.root), lambda found: all(map(is_over, found)))
    assert [run["state_type"] for run in found] == ["COMPLETED"] * 2


def running_task(task: dict[str, Any] | None) -> bool:
    return task is not None and task["state_type"] == "RUNNING"
