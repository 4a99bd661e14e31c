"""`evo doctor`: what is installed, reachable and misconfigured."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.options import Json
from flows.show.json_text import print_json


def doctor(
    root: Annotated[
        str | None,
        typer.Option("--root", help="Folder of the store, or s3://… to try. [default: $EVO_ROOT, else ./evo_runs]"),
    ] = None,
    cluster: Annotated[
        list[str] | None,
        typer.Option("--cluster", metavar="NAME", help="A cluster that has to be usable from here; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is installed, reachable and misconfigured.

    Packages, torch and GPUs, the machine, the store's disk, git, Slurm, S3 and Prefect. It changes nothing; what it
    writes to try a disk or a bucket it takes away again. Exit status 1 if there is a problem.
    """
    from flows.doctor.examine import examine
    from flows.doctor.finding import Asked
    from flows.show.findings import print_findings

    found = examine(Asked(root, tuple(cluster or ())))
    if as_json:
        print_json([finding.record() for finding in found])
    else:
        print_findings(found)
    if any(finding.verdict == "problem" for finding in found):
        raise typer.Exit(1)
