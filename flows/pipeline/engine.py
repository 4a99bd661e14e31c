"""A whole plan, on nothing but threads: what `evo run --no-server` uses. Prefect's flows call the same `run_step`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from flows.pipeline.events import ArtifactRef, Observer
from flows.pipeline.failures import StepFailed
from flows.pipeline.plan import Plan, PlannedStep
from flows.pipeline.step import run_step
from tasks.launch import launcher_for
from tasks.launch.launcher import LaunchRuntime, Stopped, launch_runtime
from tasks.launch.local import LocalLauncher
from tasks.store import Store
from tasks.store.trouble import store_must_take

PARALLEL_STEPS = 8
"""Steps at a time on this machine. Those on a cluster only wait here, for the cluster to say whose turn it is."""


def run_plan(
    plan: Plan, store: Store, observer: Observer, stop: threading.Event, refs: dict[str, ArtifactRef] | None = None
) -> dict[str, ArtifactRef]:
    """Run every step as soon as what it needs is there, then publish the refs.

    After a failure, steps that do not depend on it still finish.

    Args:
        refs: filled by the run, and there when it fails too; it is what is returned.

    Raises:
        StepFailed: the first failure.
        Stopped: `stop` was set.
    """
    begin(plan, store, observer)
    done: dict[str, ArtifactRef] = {} if refs is None else refs
    running: dict[Future[ArtifactRef], str] = {}
    failures: list[StepFailed] = []
    waiting = list(plan.steps)
    names = {step.name for step in plan.steps}
    elsewhere = {step.name for step in plan.steps if _on_a_cluster(step)}
    with (
        ThreadPoolExecutor(PARALLEL_STEPS, thread_name_prefix="step") as here,
        ThreadPoolExecutor(max(len(elsewhere), 1), thread_name_prefix="step") as there,
    ):
        while waiting or running:
            for step in [s for s in waiting if all(o in done for o, _ in s.needs.values() if o in names)]:
                waiting.remove(step)
                pool = there if step.name in elsewhere else here
                running[pool.submit(run_step, plan, step, store, observer, stop)] = step.name
            if not running:
                break  # what is left waits for a step that failed
            finished = wait_for_any(set(running))
            for future in finished:
                name = running.pop(future)
                error = future.exception()
                if error is None:
                    done[name] = future.result()
                elif isinstance(error, Stopped):
                    stop.set()
                    waiting.clear()
                else:
                    failures.append(error if isinstance(error, StepFailed) else StepFailed(name, error))
    if stop.is_set():
        raise Stopped("the run was stopped; what was finished is kept, and the same command carries on")
    if failures:
        raise failures[0]
    publish(plan, done, store, observer)
    return done


def _on_a_cluster(step: PlannedStep) -> bool:
    asked = launch_runtime(step.runtime)
    return asked is not None and not isinstance(launcher_for(asked), LocalLauncher)


def wait_for_any(futures: set[Future[ArtifactRef]]) -> set[Future[ArtifactRef]]:
    """The futures that have ended, at least one. Wakes often enough for a Ctrl-C to be seen by the main thread."""
    while True:
        finished, _ = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
        if finished:
            return finished


def begin(plan: Plan, store: Store, observer: Observer) -> None:
    """Refuse a run whose clusters are not there, then record the plan.

    Raises:
        ConfigError: a cluster cannot be used from here, or the store cannot be written.
    """
    asked: list[LaunchRuntime] = []
    for step in plan.steps:
        runtime = launch_runtime(step.runtime)
        if step.action in ("run", "attach") and runtime is not None and runtime not in asked:
            asked.append(runtime)  # a cluster is asked once for all the steps that want the same of it
            launcher_for(runtime).preflight(runtime)
    with store_must_take(store.root):
        store.record_run(plan.run_id, plan.record())
    observer.on_plan(plan)


def publish(plan: Plan, refs: Mapping[str, ArtifactRef], store: Store, observer: Observer) -> None:
    """Move the refs of the pipeline's `publish:` block to the artifacts of this run."""
    for name, step in plan.pipeline.publish.items():
        if step in refs:
            ref = refs[step]
            entry = store.refs.publish(name, step=step, key=ref.key, type=ref.type, run=plan.run_id)
            observer.on_message(None, f"published {name}@{entry['version']} = {step}-{ref.key[:12]}")
