"""How ranks find each other: the options of every command that joins them, in one place.

A command takes all four and hands them to `evo_core.parallel.process_group.ranks`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Launcher = Annotated[
    Literal["torch", "slurm"] | None,
    typer.Option("--launcher", help="What started the ranks. [default: what the environment says]"),
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", metavar="NAME", help="Of the process group. [default: nccl on GPUs, gloo on CPUs]"),
]
Host = Annotated[
    str | None,
    typer.Option("--host", metavar="ADDRESS", help="Address of rank 0. [default: what the launcher says]"),
]
Port = Annotated[int | None, typer.Option("--port", help="Port of rank 0. [default: what the launcher says]")]
