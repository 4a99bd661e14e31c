"""``python -m evo_core.train --config FILE``: a training job, alone or as one of many ranks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from evo_core.command_line.config_options import ConfigFile, Seed, Set, overrides
from evo_core.command_line.launcher_options import Backend, Host, Launcher, Port
from evo_core.command_line.program import plain_app, run
from evo_core.command_line.several_words import name_before_each
from evo_core.errors import ConfigError
from evo_core.storage.location import check_location, local_path

STOPPED = 143
"""Exit status of a run that a signal ended after it saved: 128 + SIGTERM."""

app = plain_app()


class Content(StrEnum):
    """What can be taken from a checkpoint."""

    MODEL = "model"
    SAMPLER = "sampler"
    OPTIMIZER = "optimizer"
    SCHEDULER = "scheduler"
    ALL = "all"


class _TrainCommand(TyperCommand):
    """Takes several words after one --init-content, where the library takes one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(name_before_each(args, "--init-content")))


@app.command(cls=_TrainCommand)
def train_command(
    config: ConfigFile,
    set_: Set = None,
    folder: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where log and curve go. [default: RUN/<job name>/<date>]"),
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Start from it where there is nothing to resume.")
    ] = None,
    init_content: Annotated[
        list[Content] | None,
        typer.Option(help="What to take from it; several words, or repeated. [default: model]", show_default=False),
    ] = None,
    init_allow_missing: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Tensors of the model that it may lack: a name or pattern; may be repeated."),
    ] = None,
    init_allow_unexpected: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Tensors beside the model's that it may have; may be repeated."),
    ] = None,
    profiling: Annotated[
        bool,
        typer.Option(
            "--profiling", help="Profile the sixth step, or those of monitor.profile.steps; see docs/monitoring.md."
        ),
    ] = False,
    launcher: Launcher = None,
    backend: Backend = None,
    seed: Seed = None,
    host: Host = None,
    port: Port = None,
) -> None:
    """Train a model here and now, alone or as one of many ranks.

    SIGTERM, Ctrl-C and SIGHUP save a checkpoint first; the exit status is then 143.
    """
    from evo_core.config import load_config
    from evo_core.config.profiled import profiled
    from evo_core.train.host_memory import keep_freed_memory

    keep_freed_memory()
    cfg = load_config(config, overrides(set_, seed))  # before torch is imported: a mistake is told at once
    if profiling:
        cfg = profiled(cfg)
    run_folder = None if folder is None else local_path(folder, "--folder")
    if run_folder is None:
        cfg.run_name  # noqa: B018 - what cannot name a folder is told before anything is joined or read
    if init is not None:
        check_location(init, "--init")
    elif init_allow_missing or init_allow_unexpected:
        option = "--init-allow-missing" if init_allow_missing else "--init-allow-unexpected"
        message = "there is no --init, whose checkpoint it is about"
        raise ConfigError(message, key=option, hint="of ckpt.load_ckpt_info write its own allow")

    from evo_core.checkpoint.allowed import Allow
    from evo_core.parallel.process_group import ranks
    from evo_core.train.loop import train
    from evo_core.train.start import Start

    timeout = timedelta(seconds=cfg.monitor.collective_timeout)
    with ranks(launcher, backend, host=host, port=port, timeout=timeout, catch_stop=True) as joined:
        start = None
        if init is not None:
            content = tuple(part.value for part in init_content or [Content.MODEL])
            allow = Allow(tuple(init_allow_missing or ()), tuple(init_allow_unexpected or ()), as_options=True)
            start = Start(Path(init), content, resumes=False, source=init, allow=allow)
        stopped = train(cfg, folder=run_folder, init=start, ranks=joined).stopped
    if stopped:
        raise typer.Exit(STOPPED)


def main(words: Sequence[str] | None = None, program: str = "python -m evo_core.train") -> None:
    """Carry out a command line; exits with 2 for a mistake of the user's, with 143 where a signal ended the run."""
    run(app, words, program)
