"""A pipeline as the tasks of a Prefect flow run: one task per step, drawn as a graph, over the one engine.

The store stays the truth: tasks have no cache of Prefect's, and what passes between them is a small `ArtifactRef`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, State
from prefect.tasks import MaterializingTask

from evo_core.errors import UserError
from flows.notify.tell import tell
from flows.orchestration.dead_runs import living
from flows.orchestration.owned_jobs import ROOT_LABEL, RUN_LABEL, remember_owned_jobs
from flows.orchestration.request import Request
from flows.orchestration.server import prefect_home
from flows.pipeline.engine import begin, publish
from flows.pipeline.events import ArtifactRef, Observer
from flows.pipeline.plan import Plan, PlannedStep
from flows.pipeline.step import run_step
from flows.show.observers import Observers
from flows.show.prefect_view import PrefectObserver
from flows.show.report import write_report
from tasks.launch.launcher import Stopped, launch_runtime
from tasks.store import Store


@dataclass
class Session:
    """What a caller in the same process shares with the flow it calls.

    Attributes:
        plan: the plan it has begun already.
        observer: its own view of the run.
        stop: set to end the run.
        page: the address of Prefect's pages.
        on_sigterm: its handler of SIGTERM. Prefect's would end the process before its server is stopped.
        refs: filled by the run, and there when it fails too.
    """

    plan: Plan
    observer: Observer
    stop: threading.Event
    page: str | None = None
    on_sigterm: Any = None
    refs: dict[str, ArtifactRef] = field(default_factory=dict)


STOPPED = "the run was stopped; what was finished is kept, and the same run carries on from it"

SESSION: ContextVar[Session | None] = ContextVar("session", default=None)


def orchestrate(request: Request) -> dict[str, ArtifactRef] | State:
    """Run what is asked for as tasks of the current flow run; gives each step's artifact.

    When a step fails, those that need it do not run, the others finish, and its error is the flow's. When the flow is
    told to stop (SIGTERM, Ctrl-C), its steps are told too: local jobs end, Slurm jobs are left running.
    """
    store = request.store()
    session = SESSION.get()
    if session is None:
        session = Session(request.plan(store), Observers(), threading.Event())
        _begin(session, store)
    elif session.on_sigterm is not None:
        signal.signal(signal.SIGTERM, session.on_sigterm)
    run = _Run(session.plan, store, session.stop, session.refs)
    page = PrefectObserver(run.plan, store)
    run.view = Observers(page, session.observer)
    page.on_plan(run.plan)
    _label(run.plan)
    if session.page is not None:
        session.observer.on_message(None, f"page of this run: {session.page}/runs/flow-run/{flow_run.id}")
    remember_owned_jobs(run.plan, store, str(flow_run.id))
    error: BaseException | None = None
    try:
        with living(prefect_home(store), str(flow_run.id)):
            _run_steps(run)
        if not run.stop.is_set():
            publish(run.plan, run.refs, store, run.view)
    except BaseException as raised:
        error = raised
        raise
    finally:
        page.on_end(run.refs)
        _report(run, error)
        if isinstance(error, Exception) or (error is None and not run.stop.is_set()):
            tell(run.plan, error, partial(run.view.on_message, None))
    if run.stop.is_set():
        return Cancelled(name="Stopped", message=STOPPED)
    return run.refs


def _begin(session: Session, store: Store) -> None:
    """Begin the plan of a deployment's run. Nobody sits before it: what refuses it is told too."""
    try:
        begin(session.plan, store, session.observer)
    except UserError as error:
        tell(session.plan, error, get_run_logger().warning)
        raise


def _report(run: _Run, error: BaseException | None) -> None:
    """Write the report of the run, whatever became of it. One that cannot be written changes nothing of that."""
    why = (str(error) or type(error).__name__) if error is not None else STOPPED if run.stop.is_set() else None
    try:
        write_report(run.plan, run.refs, run.store, why)
    except Exception:
        get_run_logger().exception("the report of the run could not be written")


def _label(plan: Plan) -> None:
    """Tell Prefect which run of which store this flow run is, and let both have one name."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(flow_run.id), {ROOT_LABEL: plan.root, RUN_LABEL: plan.run_id})
        client.update_flow_run(UUID(flow_run.id), name=plan.run_id)


@dataclass
class _Run:
    """What the steps of one flow run share."""

    plan: Plan
    store: Store
    stop: threading.Event
    refs: dict[str, ArtifactRef]
    view: Observer = field(default_factory=Observers)
    errors: dict[str, Exception] = field(default_factory=dict)


def _run_steps(run: _Run) -> None:
    """Submit every step, each with the futures of what it needs, and wait for all of them.

    A signal reaches the main thread only, which is this one; the steps' threads learn of it by the event.
    """
    futures: dict[str, PrefectFuture[Any]] = {}
    try:
        for step in run.plan.steps:
            upstream = {name: futures[origin] for name, (origin, _) in step.needs.items() if origin in futures}
            futures[step.name] = _task(run, step).submit(upstream)
        _wait_for(futures.values())
    except BaseException:
        run.stop.set()
        _wait_for(futures.values())
        raise
    for step in run.plan.steps:
        if step.name in run.errors:
            raise run.errors[step.name]


def _wait_for(futures: Iterable[PrefectFuture[Any]]) -> None:
    """Wait for all of them, awake often enough for a signal to be heard: one that the system hands to another thread
    does not wake this one, which alone runs what answers it."""
    for future in futures:
        ended = threading.Event()
        future.add_done_callback(partial(_end, ended))
        while not ended.wait(0.2):
            pass
        future.wait()


def _end(ended: threading.Event, future: PrefectFuture[Any]) -> None:
    ended.set()


def _task(run: _Run, step: PlannedStep) -> Task[..., ArtifactRef | State]:
    """The Prefect task of one step. What it makes is also announced as an asset, with the assets it comes from."""

    def run_this_step(upstream: Mapping[str, ArtifactRef]) -> ArtifactRef | State:
        try:
            if run.stop.is_set():
                raise Stopped("the run was stopped before this step began")
            ref = run_step(run.plan, step, run.store, run.view, run.stop)
        except Stopped as stopped:
            return Cancelled(name="Stopped", message=str(stopped))
        except Exception as error:
            run.errors[step.name] = error
            raise
        run.refs[step.name] = ref
        if ref.action == "reused":
            return Completed(name="Reused", message=f"key {step.key[:12]}", data=ref)
        return ref

    run_this_step.__doc__ = type(step.kind).__doc__
    name = f"{step.name} [{step.key[:6]}]"
    options: dict[str, Any] = {
        "name": name,
        "task_run_name": name,
        "cache_policy": NO_CACHE,
        "persist_result": False,
    }
    if step.action == "reuse":
        return Task(run_this_step, **options)
    # Tags let Prefect limit how many steps of a kind, or on a cluster, run at once. They cost half a second a step.
    asked = launch_runtime(step.runtime)
    tags = [step.kind.name, *([asked.cluster] if asked is not None else [])]
    return MaterializingTask(
        run_this_step,
        tags=tags,
        assets=[asset(step.name, step.key)],
        asset_deps=[asset(origin, key) for origin, key in step.needs.values()],
        **options,
    )


def asset(origin: str, key: str) -> str:
    """The address under which Prefect's events know an artifact: the step that made it, or the ref, and its key."""
    return f"evo://{origin.removeprefix('ref:').partition('@')[0]}-{key[:12]}"
