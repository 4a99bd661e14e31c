"""``python -m evo_core.train --config FILE``: a training job, alone or as one of many ranks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evo_core.job import command
from evo_core.storage.location import check_location, local_path

STOPPED = 143
"""Exit status of a run that a signal ended after it saved: 128 + SIGTERM."""


def parser() -> argparse.ArgumentParser:
    """The command line; names and meanings are the original's where it has them."""
    result = argparse.ArgumentParser(prog="evo_core.train", description=__doc__)
    result.add_argument("--config", required=True, metavar="FILE", help="a .yaml or .py training configuration")
    result.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set one key, as in adam.lr=3e-4; may be repeated",
    )
    result.add_argument("--folder", help="where log and curve go; default RUN/<job name>/<date>")
    result.add_argument("--init", metavar="CHECKPOINT", help="start from it where there is nothing to resume")
    result.add_argument(
        "--init-content",
        nargs="+",
        default=["model"],
        choices=["model", "sampler", "optimizer", "scheduler", "all"],
        help="what to take from it (default: model)",
    )
    result.add_argument("--launcher", choices=["torch", "slurm"], help="default: what the environment says")
    result.add_argument("--backend", help="of the process group; default nccl on GPUs, gloo on CPUs")
    result.add_argument("--seed", type=int, help="overrides the configuration's")
    result.add_argument("--host", help="address of rank 0")
    result.add_argument("--port", type=int, help="port of rank 0")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, join the ranks, train; exits with 143 where a signal ended the run."""
    arguments = parser().parse_args(argv)
    overrides = list(arguments.overrides)
    if arguments.seed is not None:
        overrides.append(f"seed={arguments.seed}")
    stopped = False
    with command("evo_core.train"):
        from evo_core.config import load_config

        cfg = load_config(arguments.config, overrides)  # before torch is imported: a mistake is told at once
        folder = None if arguments.folder is None else local_path(arguments.folder, "--folder")
        if folder is None:
            cfg.run_name  # noqa: B018 - what cannot name a folder is told before anything is joined or read
        if arguments.init is not None:
            check_location(arguments.init, "--init")

        from evo_core.parallel.process_group import ranks
        from evo_core.train.loop import train
        from evo_core.train.start import Start

        with ranks(
            arguments.launcher, arguments.backend, host=arguments.host, port=arguments.port, catch_stop=True
        ) as joined:
            init = None
            if arguments.init is not None:
                init = Start(Path(arguments.init), tuple(arguments.init_content), resumes=False)
            stopped = train(cfg, folder=folder, init=init, ranks=joined).stopped
    if stopped:
        sys.exit(STOPPED)
