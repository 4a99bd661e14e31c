"""`evo status`, `trace` and `ui`: what a store holds, and what is going on."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import Json, Root
from flows.show.json_text import print_json


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
