"""The options that several commands of `evo` have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PipelineFile = Annotated[
    Path, typer.Argument(metavar="PIPELINE", help="A pipeline file, for example configs/pipelines/demo.yaml.")
]
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
