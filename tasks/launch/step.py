"""What the kinds that compute on a model share: one way to launch a command of evo_core and to wait for it."""

from __future__ import annotations

import threading
from typing import Any

from evo_core.storage.files import copy_file
from tasks.kind import StepContext
from tasks.launch import launcher_for
from tasks.launch.launcher import Job, LaunchRuntime, Stopped
from tasks.launch.local import LocalLauncher

_one_local_job = threading.Lock()
"""Steps of one run that compute on this machine take turns: side by side they would only slow each other down."""


def launch(ctx: StepContext[Any, Any], module: str, *args: str) -> None:
    """Run `python -m module args` where the step's runtime says, and return when it has succeeded.

    Raises:
        JobFailed: with the job's own error. Its log stays in the key's state folder.
        Stopped: the run was told to stop.
    """
    runtime: LaunchRuntime = ctx.runtime
    launcher = launcher_for(runtime)
    job = Job(
        name=f"evo-{ctx.name}-{ctx.key[:12]}-a{ctx.attempt}",
        module=module,
        args=args,
        state=ctx.state,
        log=ctx.state / f"log-{ctx.attempt}.txt",
        runtime=runtime,
        attempt=ctx.attempt,
    )
    local = isinstance(launcher, LocalLauncher)
    while local and not _one_local_job.acquire(timeout=0.2):
        if ctx.stop.is_set():
            raise Stopped(f"{ctx.name} had not started")
    try:
        launcher.run(job, stop=ctx.stop, on_progress=ctx.on_progress, on_line=ctx.say)
    finally:
        if local:
            _one_local_job.release()
    if job.log.exists():
        copy_file(job.log, ctx.folder / "log.txt")
