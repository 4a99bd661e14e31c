"""`evo run`, `plan`, `why` and `dag`: what is done with a pipeline file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from evo_core.errors import UserError
from flows.commands.options import Force, Json, PipelineFile, Root, Set, Targets
from flows.show.json_text import print_json


def run(
    pipeline: PipelineFile,
    set_: Set = None,
    force: Force = None,
    targets: Targets = None,
    root: Root = None,
    no_server: Annotated[
        bool, typer.Option("--no-server", help="Run without Prefect: same steps, same artifacts, no web page.")
    ] = False,
) -> None:
    """Run a pipeline: make what is not there yet, reuse what is.

    Ctrl-C stops it; the same command carries on where it was. Steps on Slurm go on without it, and the same command
    attaches to them.
    """
    from flows.orchestration.request import Request
    from flows.orchestration.signals import stop_on_signals
    from flows.show.console import ConsoleObserver
    from flows.show.report import print_report
    from tasks.launch.launcher import Stopped

    request = Request(pipeline=str(pipeline), set=set_ or [], force=force or [], targets=targets or [], root=root)
    store = request.store()
    plan = request.plan(store)
    with stop_on_signals() as caught, ConsoleObserver() as observer:
        try:
            if no_server:
                from flows.orchestration.local_run import run_without_server

                refs = run_without_server(plan, store, observer, caught.stop)
            else:
                from flows.orchestration.local_run import run_with_prefect

                refs = run_with_prefect(request, plan, observer, caught.stop)
        except Stopped as stopped:
            print(f"evo: {str(stopped) or 'stopped'}", file=sys.stderr)
            raise typer.Exit(caught.exit_status) from None
    print_report(plan, refs, store)


def plan(
    pipeline: PipelineFile,
    set_: Set = None,
    force: Force = None,
    targets: Targets = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Show what a run would do, and why. Changes nothing and contacts no cluster."""
    from flows.orchestration.request import Request
    from flows.show.tables import print_plan

    request = Request(pipeline=str(pipeline), set=set_ or [], force=force or [], targets=targets or [], root=root)
    planned = request.plan(request.store())
    if as_json:
        print_json(planned.record())
    else:
        print_plan(planned)


def why(
    pipeline: PipelineFile,
    step: Annotated[str, typer.Argument(metavar="STEP", help="Its name in the file.")],
    set_: Set = None,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Say what changed since the nearest earlier artifact of a step."""
    from flows.orchestration.request import Request
    from flows.pipeline.reasons import reasons
    from flows.show.tables import print_reasons

    request = Request(pipeline=str(pipeline), set=set_ or [], targets=[step], root=root)
    store = request.store()
    found = reasons(request.plan(store), request.targets[0], store)
    if as_json:
        print_json(found)
    else:
        print_reasons(found)


def dag(
    pipeline: PipelineFile,
    set_: Set = None,
    form: Annotated[str, typer.Option("--format", help="text, mermaid or dot.")] = "text",
) -> None:
    """Draw the pipeline's graph."""
    from evo_core.config.suggest import suggest
    from flows.pipeline.dag import FORMATS
    from flows.pipeline.schema import load_pipeline

    if form not in FORMATS:
        raise UserError(f"unknown format {form!r}{suggest(form, FORMATS)}", key="--format", hint=", ".join(FORMATS))
    print(FORMATS[form](load_pipeline(pipeline, set_ or [])))
