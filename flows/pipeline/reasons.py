"""Why a step of a plan runs, followed upstream: what `evo why` prints."""

from __future__ import annotations

from typing import Any

from flows.pipeline.plan import Plan
from flows.pipeline.why import Earlier, differences
from tasks.store import Store


def reasons(plan: Plan, step: str, store: Store) -> list[dict[str, Any]]:
    """Why a step, or each of a sweep, runs, then why what it needs runs: all upstream of it that is not reused.

    Each entry is {"step", "key", "action", "why", "nearest" (the artifact compared with), "differences"}.
    """
    found, queue, seen = [], list(plan.pipeline.named(step)), set[str]()
    names = {step.name for step in plan.pipeline.steps}
    earlier = Earlier(store, names)
    while queue:
        planned = plan.step(queue.pop(0))
        if planned.name in seen:
            continue
        seen.add(planned.name)
        before = None
        if planned.action == "run":
            before = earlier.nearest(planned.name, planned.kind.name, planned.payload)
        changes = list(differences(before.manifest["identity"], planned.payload)) if before else []
        found.append(
            {
                "step": planned.name,
                "key": planned.key,
                "action": planned.action,
                "why": planned.why,
                "nearest": before and before.name,
                "differences": changes,
            }
        )
        upstream = [origin for origin, _ in planned.needs.values() if origin in names]
        queue += [name for name in upstream if plan.step(name).action != "reuse"]
    return found
