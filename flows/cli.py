"""The command `evo`.

Exit status: 0 all is well; 1 a step failed or something crashed; 2 the user's input is wrong; 129 stopped by SIGHUP
(a closed terminal), 130 by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from evo_core.data.commands import app as data_app
from evo_core.errors import UserError

app = typer.Typer(
    name="evo",
    help="Raw text to a trained language model to generated text, as one pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PipelineFile = Annotated[Path, typer.Argument(help="A pipeline file, for example configs/pipelines/demo.yaml.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Lay a value over the file's: steps.model.params.adam.lr=3e-4."),
]
Root = Annotated[str | None, typer.Option("--root", help="Folder of the store. [default: $EVO_ROOT, else ./evo_runs]")]
Targets = Annotated[
    list[str] | None, typer.Option("--targets", metavar="STEP", help="Only this step and what it needs; repeatable.")
]
Force = Annotated[
    list[str] | None,
    typer.Option("--force", metavar="STEP", help="Make this step and what follows it again; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


@app.command()
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
            _fail(str(stopped) or "stopped", caught.exit_status)
    print_report(plan, refs, store)


@app.command()
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
        _print_json(planned.record())
    else:
        print_plan(planned)


@app.command()
def why(pipeline: PipelineFile, step: str, set_: Set = None, root: Root = None, as_json: Json = False) -> None:
    """Say why a step runs: what changed since the nearest artifact made before."""
    from flows.orchestration.request import Request
    from flows.pipeline.reasons import reasons
    from flows.show.tables import print_reasons

    request = Request(pipeline=str(pipeline), set=set_ or [], targets=[step], root=root)
    store = request.store()
    found = reasons(request.plan(store), request.targets[0], store)
    if as_json:
        _print_json(found)
    else:
        print_reasons(found)


@app.command()
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


@app.command()
def status(root: Root = None, as_json: Json = False) -> None:
    """Show what is being made now, and the last runs."""
    from flows.pipeline.status import damaged, live, runs
    from flows.show.tables import print_status
    from tasks.store import open_store

    store = open_store(root)
    now, last, broken = live(store), runs(store), damaged(store)
    if as_json:
        _print_json({"live": now, "runs": last, "damaged": broken})
    else:
        print_status(store, now, last, broken)


@app.command()
def trace(
    text: Annotated[str, typer.Argument(help="Words of a generated text, a step's name, or the start of a key.")],
    root: Root = None,
    files: Annotated[bool, typer.Option("--files", help="List every raw file.")] = False,
    as_json: Json = False,
) -> None:
    """Go back from a generated text, or an artifact, to the raw files and the code behind it."""
    from flows.pipeline.lineage import ancestors, raw_files, start_of
    from flows.show.tables import print_trace
    from tasks.store import open_store

    store = open_store(root)
    artifact, sample = start_of(store, text)
    lineage = ancestors(store, artifact)
    behind = raw_files(lineage)
    if as_json:
        listed = [vars(file) for file in behind]
        _print_json({"sample": sample, "lineage": [a.record() for a in lineage], "raw_files": listed})
    else:
        print_trace(sample, lineage, behind, every_file=files)


@app.command()
def ui(root: Root = None) -> None:
    """Open Prefect's pages and tensorboard on what was recorded, until Ctrl-C."""
    from flows.orchestration.server import serve_ui

    serve_ui(root)


def _core(module: str, what: str) -> None:
    """A command of evo_core under `evo`: its own options, its own help."""

    @app.command(
        module,
        help=what,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    )
    def command(ctx: typer.Context) -> None:
        import runpy

        sys.argv = [f"evo {module}", *ctx.args]
        runpy.run_module(f"evo_core.{module}", run_name="__main__", alter_sys=False)


_core("train", "Train a model here and now: evo train --config configs/train/demo.yaml.")
_core("evaluate", "Held-out loss, perplexity and accuracy per type of a model.")
_core("generate", "Let a model continue prompts: the `generation` block of a config.")
_core("serve", "Serve a model: an OpenAI-compatible HTTP API and a page to try it.")
_core("convert", "Weights to and from Hugging Face, Meta's llama and InternEvo: evo convert SRC TGT.")

app.add_typer(data_app)


def main() -> None:
    """Entry point of the command: a user's mistake is one line and status 2; a step that failed, whatever its cause,
    and anything else is status 1, with a traceback where the code is to blame."""
    from flows.show.output import lasting_output

    with lasting_output():
        _main()


def _main() -> None:
    from tasks.launch.launcher import JobFailed
    from tasks.store.trouble import storage_trouble

    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except Exception as error:
        cause, trouble = getattr(error, "cause", error), storage_trouble(error)
        if not isinstance(cause, UserError | JobFailed) and storage_trouble(cause) is None:
            traceback.print_exception(cause)
        _fail(trouble or str(error), 1)


def _fail(message: str, status: int) -> None:
    print(f"evo: {message}", file=sys.stderr)
    raise SystemExit(status)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
