"""The Slurm jobs that a flow run started itself, so that cancelling the run can end them.

A job outlives a crash, a restart or a SIGTERM of the flow: the next run attaches to it. Only a person's "cancel"
ends it, and only if the cancelled run started it: one that merely attached leaves it to its owner. Prefect calls the
cancellation hook in another process that knows nothing but the id of the flow run; so the record lies in the store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.orchestration.server import prefect_home
from flows.pipeline.plan import Plan
from tasks.launch.launcher import launch_runtime
from tasks.store import Store, open_store
from tasks.store.claim import last_owner
from tasks.store.json_file import read_json, write_json

ROOT_LABEL, RUN_LABEL = "evo.root", "evo.run"
"""Labels of a flow run: the store it works on, and the name of its run there."""


def remember_owned_jobs(plan: Plan, store: Store, flow_run_id: str) -> None:
    """Record which steps this flow run may launch a job for: those that no other run is making.

    A flow run that Prefect starts again adds to its record: the jobs of its first life are still its own.
    """
    record = _read(store, flow_run_id)
    for step in plan.steps:
        asked = launch_runtime(step.runtime)
        if step.action == "run" and asked is not None:
            record["steps"][step.key] = {"step": step.name, "cluster": asked.cluster}
    if record["steps"]:
        record["runs"].append(plan.run_id)
        write_json(_record(store, flow_run_id), record)


def cancel_owned_jobs(flow: Any, flow_run: Any, state: Any) -> None:
    """Prefect's hook for a cancelled flow run (it passes exactly these names): end the jobs that the run owns.

    Calling it again does nothing: an ended job is not alive.
    """
    from prefect.logging.handlers import APILogWorker
    from prefect.logging.loggers import flow_run_logger

    root = flow_run.labels.get(ROOT_LABEL)
    if root is None:
        return  # it was cancelled before it had planned anything
    ended = end_owned_jobs(open_store(root), str(flow_run.id))
    said = ", ".join(f"{step}: {what}" for step, what in ended.items()) or "none was running"
    flow_run_logger(flow_run, flow).info("jobs of this run that were cancelled with it: %s", said)
    APILogWorker.drain_all(timeout=5)  # this process ends without waiting for its log


def end_owned_jobs(store: Store, flow_run_id: str) -> dict[str, str]:
    """End what is alive of a flow run's own jobs; gives step name to what was ended."""
    from tasks.launch import launcher_for
    from tasks.launch.launcher import LaunchRuntime

    record, ended = _read(store, flow_run_id), {}
    for key, step in record["steps"].items():
        state = store.state(key)
        owner = last_owner(state)
        if owner is not None and owner.get("run") not in record["runs"]:
            continue  # another run was faster to this step: the job is its
        what = launcher_for(LaunchRuntime(cluster=step["cluster"])).cancel(state)
        if what is not None:
            ended[step["step"]] = what
    return ended


def _read(store: Store, flow_run_id: str) -> dict[str, Any]:
    return read_json(_record(store, flow_run_id)) or {"runs": [], "steps": {}}


def _record(store: Store, flow_run_id: str) -> Path:
    return prefect_home(store) / "owned" / f"{flow_run_id}.json"
