"""`evo run`: a flow run in this process, with a Prefect server found or started for it, or on threads alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from flows.notify.tell import tell
from flows.orchestration.address import around_proxies
from flows.orchestration.request import Request
from flows.orchestration.server import Server, ensure_server, prefect_home
from flows.pipeline.engine import begin, run_plan
from flows.pipeline.events import ArtifactRef, Observer
from flows.pipeline.failures import reason
from flows.pipeline.plan import Plan
from flows.show.report import write_report
from tasks.launch.launcher import Stopped
from tasks.store import Store

if TYPE_CHECKING:
    from prefect import Flow

    from flows.orchestration.flow import Session

FLUSH_SECONDS = 10.0


def run_without_server(plan: Plan, store: Store, observer: Observer, stop: threading.Event) -> dict[str, ArtifactRef]:
    """Run a plan on threads alone and write its report, whatever becomes of it; gives each step's artifact.

    Raises:
        StepFailed: the first failure.
        Stopped: `stop` was set.
    """
    refs: dict[str, ArtifactRef] = {}
    try:
        run_plan(plan, store, observer, stop, refs)
    except Stopped as stopped:
        _report(plan, refs, store, observer, str(stopped))
        raise
    except Exception as error:
        _report(plan, refs, store, observer, reason(error))
        tell(plan, error, partial(observer.on_message, None))
        raise
    _report(plan, refs, store, observer, None)
    tell(plan, None, partial(observer.on_message, None))
    return refs


def _report(plan: Plan, refs: Mapping[str, ArtifactRef], store: Store, observer: Observer, why: str | None) -> None:
    """Write the report of the run. One that cannot be written changes nothing of what became of the run."""
    try:
        write_report(plan, refs, store, why)
    except Exception as error:
        observer.on_message(None, f"the report of the run could not be written: {reason(error)}")


def run_with_prefect(request: Request, plan: Plan, observer: Observer, stop: threading.Event) -> dict[str, ArtifactRef]:
    """Run a plan as a Prefect flow in this process; gives each step's artifact.

    Args:
        request: what the plan was made from; it becomes the flow run's parameters.
        stop: set by the caller's signal handlers to end the run.

    Raises:
        StepFailed: the first failure.
        Stopped: `stop` was set.
        UserError: a cluster or a Prefect server that was asked for is not there.
    """
    begin(plan, request.store(), observer)  # refuses what cannot work before a server is started for it

    def while_it_starts() -> None:
        observer.on_message(None, "starting a Prefect server for this run")
        _import_flows()

    with (
        ensure_server(request.root, meanwhile=while_it_starts, stop=stop) as server,
        _told_to_prefect(_environment(server, request)),
    ):
        from flows.orchestration.flow import Session

        session = Session(plan, observer, stop, page=server.page, on_sigterm=signal.getsignal(signal.SIGTERM))
        return _call_flow(request, session)


def _call_flow(request: Request, session: Session) -> dict[str, ArtifactRef]:
    from prefect.exceptions import CancelledRun

    from flows.orchestration.flow import SESSION

    flow, parameters = flow_for(request, session.plan)
    token = SESSION.set(session)
    try:
        flow(parameters)
    except CancelledRun as error:
        raise Stopped("the run was stopped; what was finished is kept, and the same command carries on") from error
    finally:
        SESSION.reset(token)
        _flush()
    return session.refs


def flow_for(request: Request, plan: Plan) -> tuple[Flow[..., Any], Request]:
    """The flow that fits a pipeline, by what it makes, and its parameters."""
    from flows.data_refresh import DataRefresh, data_refresh
    from flows.finetune import Finetune, finetune
    from flows.pretrain import Pretrain, pretrain

    words = request.model_dump()
    kinds = {step.kind.name for step in plan.pipeline.steps}
    if "train.finetune" in kinds:
        return finetune, Finetune(**words)
    if any(step.kind.output == "model" for step in plan.pipeline.steps):
        return pretrain, Pretrain(**words)
    return data_refresh, DataRefresh(**words)


def _environment(server: Server, request: Request) -> dict[str, str]:
    """What Prefect is told: the server, and to leave the console to us."""
    told = {"PREFECT_API_URL": server.api, "DO_NOT_TRACK": "1", **around_proxies()}
    if server.started:
        told["PREFECT_HOME"] = str(prefect_home(request.store()))
    if "PREFECT_LOGGING_LEVEL" not in os.environ:
        told["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    return told


@contextmanager
def _told_to_prefect(told: Mapping[str, str]) -> Iterator[None]:
    """Settings by environment variables for the block: Prefect's background threads look nowhere else."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    refresh_global_settings_context()
    setup_logging()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        refresh_global_settings_context()


def _import_flows() -> None:
    """Import Prefect, the flows and what draws, which takes three seconds, while the server starts."""
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401

    from flows import data_refresh, finetune, pretrain  # noqa: F401


def _flush() -> None:
    """Hand the server what Prefect has not sent yet (states of tasks, log lines) before it may be stopped."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    # In a thread: where a loop runs in this one, as in a notebook, Prefect gives a coroutine and waits for nothing.
    with ThreadPoolExecutor(1) as thread:
        for worker in (EventsWorker, APILogWorker):
            thread.submit(worker.drain_all, timeout=FLUSH_SECONDS).result()
