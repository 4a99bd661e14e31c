"""`evo status`, `logs`, `trace` and `ui`: what a store holds, and what is going on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import Json, Root
from flows.show.json_text import print_json

if TYPE_CHECKING:
    from flows.pipeline.logs import LoggedStep
    from tasks.store import Store


def status(root: Root = None, as_json: Json = False) -> None:
    """Show what is being made now, and the last runs."""
    from flows.pipeline.status import damaged, live, runs
    from flows.show.tables import print_status
    from tasks.store import open_store

    store = open_store(root)
    now, last, broken = live(store), runs(store), damaged(store)
    if as_json:
        print_json({"live": now, "runs": last, "damaged": broken})
    else:
        print_status(store, now, last, broken)


def logs(
    step: Annotated[
        str,
        typer.Argument(metavar="STEP", help="A step's name, a sweep's for all of its steps, or the start of a key."),
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the step has ended.")] = False,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Of this run. [default: the newest that has the step]")
    ] = None,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=0, metavar="LINES", help="Only the last of them. [default: all]")
    ] = None,
    root: Root = None,
) -> None:
    """Print the log of a step, and with -f what is added to it.

    It is that of its job; a step that runs in the run's own process has its messages, with the time of day.
    """
    from flows.pipeline.logs import Making, find_steps, log_files
    from flows.pipeline.run_secrets import secrets_of_run
    from flows.show.log_follow import LogPrinter
    from tasks.store import open_store

    store = open_store(root)
    steps, record = find_steps(store, step, run)

    def files() -> dict[str, Path]:
        found = [(one.name, log_files(store, one.key)) for one in steps]
        return {f"{name} {file}": path for name, logs in found for file, path in logs.items()}

    printer = LogPrinter(secrets_of_run(record).conceal)
    if follow:
        printer.follow(files, lines, Making(store, steps, record))
    else:
        printer.show(files(), lines)
    if not files():
        print(f"evo: {step}: there is no log: {_why_not(store, steps)}", file=sys.stderr)


def _why_not(store: Store, steps: Sequence[LoggedStep]) -> str:
    if any(store.with_key(step.key) is None for step in steps):
        return "it has not begun"
    return "its artifact was made where no log was kept, or without its state folder"


def trace(
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="Words of a generated text, a step's name, or the start of a key.")
    ],
    root: Root = None,
    files: Annotated[bool, typer.Option("--files", help="List every raw file.")] = False,
    as_json: Json = False,
) -> None:
    """Go back from a generated text to the files and code behind it.

    From an artifact too: a step's name, or the start of a key.
    """
    from flows.pipeline.lineage import ancestors, raw_files, start_of
    from flows.show.tables import print_trace
    from tasks.store import open_store

    store = open_store(root)
    artifact, sample = start_of(store, text)
    lineage = ancestors(store, artifact)
    behind = raw_files(lineage)
    if as_json:
        listed = [vars(file) for file in behind]
        print_json({"sample": sample, "lineage": [a.record() for a in lineage], "raw_files": listed})
    else:
        print_trace(sample, lineage, behind, every_file=files)


def ui(root: Root = None) -> None:
    """Open Prefect's pages and tensorboard, until Ctrl-C."""
    from flows.orchestration.server import serve_ui

    serve_ui(root)
