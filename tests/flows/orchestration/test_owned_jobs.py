"""Which jobs a cancelled flow run ends, and which it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.orchestration.owned_jobs import ROOT_LABEL, cancel_owned_jobs, end_owned_jobs, remember_owned_jobs
from flows.pipeline.plan import Plan
from tasks.launch.launcher import LaunchRuntime
from tasks.store.json_file import write_json
from tests.flows.orchestration.small import Small


class Clusters:
    """Stands in for every launcher: remembers which state folders were cancelled."""

    def __init__(self) -> None:
        self.alive: set[Path] = set()
        self.asked: list[tuple[str, Path]] = []

    def __call__(self, runtime: LaunchRuntime) -> Any:
        return SimpleNamespace(cancel=lambda state: self._cancel(runtime.cluster, state))

    def _cancel(self, cluster: str, state: Path) -> str | None:
        self.asked.append((cluster, state))
        if state in self.alive:
            self.alive.discard(state)
            return f"Slurm job of {state.name[:4]}"
        return None


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> Clusters:
    found = Clusters()
    monkeypatch.setattr("tasks.launch.launcher_for", found)
    return found


def launched(plan: Plan, **actions: str) -> Plan:
    """The plan with its model and its scores on a cluster."""
    steps = [
        replace(s, runtime=LaunchRuntime(cluster="gpu"), action=actions.get(s.name, s.action))
        if s.name in ("model", "scores")
        else s
        for s in plan.steps
    ]
    return replace(plan, steps=tuple(steps))


def test_jobs_that_live_are_ended_once(small: Small, clusters: Clusters) -> None:
    plan = launched(small.plan())
    remember_owned_jobs(plan, small.store, "run-1")
    model = small.store.state(plan.step("model").key)
    clusters.alive = {model}
    assert end_owned_jobs(small.store, "run-1") == {"model": f"Slurm job of {model.name[:4]}"}
    assert {cluster for cluster, _ in clusters.asked} == {"gpu"}
    assert end_owned_jobs(small.store, "run-1") == {}


def test_a_job_that_the_run_attached_to_is_left_alone(small: Small, clusters: Clusters) -> None:
    plan = launched(small.plan(), model="attach")
    remember_owned_jobs(plan, small.store, "run-1")
    clusters.alive = {small.store.state(plan.step("model").key)}
    assert end_owned_jobs(small.store, "run-1") == {}
    assert clusters.alive


def test_a_job_that_another_run_was_faster_to_start_is_left_alone(small: Small, clusters: Clusters) -> None:
    plan = launched(small.plan())
    remember_owned_jobs(plan, small.store, "run-1")
    state = small.store.state(plan.step("model").key)
    clusters.alive = {state}
    write_json(state / "claim.json", {"run": "another", "owner": "x"})
    assert end_owned_jobs(small.store, "run-1") == {}
    write_json(state / "claim.json", {"run": plan.run_id, "owner": "x"})
    assert list(end_owned_jobs(small.store, "run-1")) == ["model"]


def test_a_flow_run_that_prefect_starts_again_still_owns_its_jobs(small: Small, clusters: Clusters) -> None:
    first = launched(small.plan())
    remember_owned_jobs(first, small.store, "run-1")
    second = launched(small.plan(), model="attach")
    remember_owned_jobs(second, small.store, "run-1")
    state = small.store.state(first.step("model").key)
    write_json(state / "claim.json", {"run": second.run_id, "owner": "x"})
    clusters.alive = {state}
    assert list(end_owned_jobs(small.store, "run-1")) == ["model"]


def test_a_run_without_jobs_leaves_no_record(small: Small) -> None:
    remember_owned_jobs(small.plan(), small.store, "run-1")
    assert not (small.root / "prefect").exists()
    assert end_owned_jobs(small.store, "run-1") == {}


def test_the_hook_takes_what_prefect_gives_it_and_finds_the_store_by_the_label(
    small: Small, clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_ENABLED", "false")
    plan = launched(small.plan())
    remember_owned_jobs(plan, small.store, "run-1")
    clusters.alive = {small.store.state(plan.step("model").key)}
    said: list[str] = []
    log = SimpleNamespace(info=lambda text, *values: said.append(text % values))
    monkeypatch.setattr("prefect.logging.loggers.flow_run_logger", lambda flow_run, flow: log)
    cancel_owned_jobs(flow=None, flow_run=SimpleNamespace(id="run-0", labels={}), state=None)
    assert said == [] and clusters.asked == []
    labels = {ROOT_LABEL: str(small.root)}
    cancel_owned_jobs(flow=None, flow_run=SimpleNamespace(id="run-1", labels=labels), state=None)
    assert "model: Slurm job of" in said[0]
    assert clusters.alive == set()
