"""`evo automate`: what a Prefect server does by itself for the deployments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from evo_core.errors import UserError
from flows.commands.options import Root


def automate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of automations: automations.yaml.")],
    root: Root = None,
) -> None:
    """Give a Prefect server the automations of a file.

    They take the place of those of the same names. The server is the one that PREFECT_API_URL or a Prefect profile
    names, else the one that `evo ui` keeps open.
    """
    from flows.orchestration.address import around_proxies
    from flows.orchestration.server import configured_api_url, prefect_home, recorded_api_url
    from tasks.store import open_store

    api = configured_api_url() or recorded_api_url(prefect_home(open_store(root)))
    if api is None:
        hint = "set PREFECT_API_URL, or open one with: evo ui"
        raise UserError("there is no Prefect server to give automations to", hint=hint)
    os.environ.update(around_proxies(), DO_NOT_TRACK="1")
    from flows.orchestration.automations import apply

    for name, change in apply(file, api).items():
        why = ": the file names no webhook" if change == "left out" else ""
        print(f"{name}: {change}{why}")
