"""What is going on in a store: what is being made now, and how the last runs stand."""

from __future__ import annotations

from typing import Any

from tasks.launch.follow import read_progress
from tasks.launch.record import read_record
from tasks.store import Store
from tasks.store.claim import holder


def live(store: Store) -> list[dict[str, Any]]:
    """Every key that somebody is making: its step and progress, and who makes it (a process, or a submitted job)."""
    found = []
    names = store.step_names()
    for state in sorted((store.root / "state").glob("*/")):
        held, job = holder(state), read_record(state)
        if held is None and job is None:
            continue
        found.append(
            {
                "step": names.get(state.name, "?"),
                "key": state.name,
                "run": held and held["run"],
                "process": held and f"{held['pid']} on {held['host']}",
                "job": job and (job.job_id or job.name),
                "progress": read_progress(state),
            }
        )
    return found


def damaged(store: Store) -> list[dict[str, str]]:
    """Artifacts whose manifest cannot be read."""
    return [{"folder": str(home), "why": why} for home, why in store.damaged()]


def runs(store: Store, newest: int = 10) -> list[dict[str, Any]]:
    """The newest runs: their steps, and which artifacts are there."""
    rows = []
    for record in store.runs()[-newest:]:
        steps = [{**step, "made": store.with_key(step["key"]) is not None} for step in record["steps"]]
        rows.append({**record, "steps": steps, "complete": all(step["made"] for step in steps)})
    return rows
