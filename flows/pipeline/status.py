"""What is going on in a store: what is being made now, and how the last runs stand."""

from __future__ import annotations

from typing import Any

from tasks.store import Store
from tasks.store.atomic import read_json
from tasks.store.claim import holder


def live(store: Store) -> list[dict[str, Any]]:
    """Every key that somebody is making: its step and progress, and who makes it (a process, or a submitted job)."""
    found = []
    for state in sorted((store.root / "state").glob("*/")):
        held, job = holder(state), read_json(state / "job.json")
        if held is None and job is None:
            continue
        key = state.name
        homes = list((store.root / "artifacts").glob(f"*-{key[:12]}"))
        found.append(
            {
                "step": homes[0].name.rpartition("-")[0] if homes else "?",
                "key": key,
                "run": held and held["run"],
                "process": held and f"{held['pid']} on {held['host']}",
                "job": job and (job.get("job_id") or job.get("name")),
                "progress": read_json(state / "progress.json"),
            }
        )
    return found


def runs(store: Store, newest: int = 10) -> list[dict[str, Any]]:
    """The newest runs: their steps, and which artifacts are there."""
    rows = []
    for record in store.runs()[-newest:]:
        steps = [{**step, "made": store.artifact(step["step"], step["key"]).exists} for step in record["steps"]]
        rows.append({**record, "steps": steps, "complete": all(step["made"] for step in steps)})
    return rows
