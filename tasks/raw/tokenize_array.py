"""Tokenizing by the tasks of a Slurm array.

The files are dealt out by bytes. Each task makes its objects one by one and is done with a file once its object is
there; so what a task that is requeued, killed or lost has finished is not done again, by itself or by another.

A task is ``python -m tasks.raw.tokenize_array PLAN``, which finds its number in SLURM_ARRAY_TASK_ID.
"""

from __future__ import annotations

import heapq
import os
import secrets
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evo_core import job
from evo_core.errors import UserError
from tasks.kind import StepContext
from tasks.launch import launcher_for
from tasks.launch.array_follow import TasksLost
from tasks.launch.commands import SlurmRefused, SlurmSilent
from tasks.launch.follow import NOTE
from tasks.launch.launcher import Job, LaunchRuntime, Stopped
from tasks.launch.pace import Pace
from tasks.launch.slurm import SlurmLauncher
from tasks.raw.listing import RawFile
from tasks.raw.tokenize_work import TokenizeWork
from tasks.store import open_store
from tasks.store.json_file import read_json, write_json

_PLAN = "array-plan-"
_SEEN_WITHIN = 60.0
"""Seconds for which a client of NFS may go on saying that a file is not there."""


def on_array(
    ctx: StepContext[Any, Any], work: TokenizeWork, runtime: LaunchRuntime, tasks: int
) -> dict[str, dict[str, Any]]:
    """Tokenize the files by an array of so many tasks, or follow the array that does so already; gives the counts of
    their objects.

    The files of tasks that Slurm lost are given to a new array, as long as each array gets further than the one before.

    Raises:
        JobFailed: with the error of the first task that failed.
        Stopped: the run was told to stop; the array goes on.
    """
    launcher = launcher_for(runtime)
    assert isinstance(launcher, SlurmLauncher), "the kind's check has seen to it"
    while True:
        done = work.done()
        left = work.without(done)
        if not left.files:
            _clear_plans(ctx.state)
            return done
        try:
            _launch(ctx, launcher, left, runtime, tasks, work.bytes - left.bytes)
        except TasksLost as lost:
            if len(work.done()) == len(done):
                raise
            ctx.say(f"{NOTE}{lost.message}; what is left goes to a new array")
        else:
            if not _seen(left, ctx.stop):
                message = "every task ended well and left no object"
                raise UserError(message, hint="do the nodes see the same store? shared_root of the cluster's file")


def _seen(left: TokenizeWork, stop: threading.Event) -> bool:
    """Whether the objects of an array that ended well are there. A network file system shows them some time later.

    Raises:
        Stopped: `stop` was set.
    """
    deadline = time.monotonic() + _SEEN_WITHIN
    while len(left.done()) < len(left.files):
        if time.monotonic() > deadline:
            return bool(left.done())
        if stop.wait(1):
            raise Stopped("stopped while it was looked whether the store shows what the array has made")
    return True


def _launch(
    ctx: StepContext[Any, Any], launcher: SlurmLauncher, left: TokenizeWork, runtime: LaunchRuntime, tasks: int,
    before: int,
) -> None:  # fmt: skip
    """One array to its end."""
    parts = deal_out(left, _as_many_as_it_takes(ctx, launcher, min(tasks, len(left.files))))
    plan = ctx.state / f"{_PLAN}{secrets.token_hex(4)}.json"
    write_plan(plan, left, parts)
    pace, total = Pace(), before + left.bytes

    def on_progress(report: dict[str, Any]) -> None:
        done = min(before + report["done"], total)  # an array that is attached to has been at it for longer
        ctx.on_progress({"unit": "bytes", **pace.report(done, total, report["tokens"])})

    launcher.run(
        Job(
            name=f"evo-{ctx.name}-{ctx.key[:12]}-a{ctx.attempt}",
            module=__name__,
            args=(str(plan),),
            state=ctx.state,
            log=ctx.state / f"log-{ctx.attempt}.txt",
            runtime=runtime,
            attempt=ctx.attempt,
            tasks=len(parts),
        ),
        stop=ctx.stop,
        on_progress=on_progress,
        on_line=ctx.say,
    )


def _as_many_as_it_takes(ctx: StepContext[Any, Any], launcher: SlurmLauncher, tasks: int) -> int:
    """The number of tasks, or as many as an array may have on this cluster."""
    try:
        most = launcher.commands.most_tasks()
    except (SlurmSilent, SlurmRefused):
        return tasks  # the submission itself asks until there is an answer
    if most is None or tasks <= most:
        return tasks
    if most == 0:
        raise launcher.cluster.error(
            "this cluster takes no arrays (MaxArraySize is 0)", hint="leave runtime.cluster out"
        )
    ctx.say(f"{NOTE}an array may have {most} tasks here (MaxArraySize), so {most} take the files of {tasks}")
    return most


def deal_out(work: TokenizeWork, tasks: int) -> list[list[str]]:
    """The objects of each task: the largest file first, each to the task with the fewest bytes so far."""
    parts: list[list[str]] = [[] for _ in range(tasks)]
    loads = [(0, task) for task in range(tasks)]
    for object_id in sorted(work.files, key=lambda object_id: (-work.files[object_id].size, object_id)):
        load, task = heapq.heappop(loads)
        parts[task].append(object_id)
        heapq.heappush(loads, (load + work.files[object_id].size, task))
    return parts


def write_plan(plan: Path, work: TokenizeWork, parts: Sequence[Sequence[str]]) -> None:
    """Write what each task has to do, for `main` on its node."""
    tasks = [[{"object": object_id, **vars(work.files[object_id])} for object_id in part] for part in parts]
    content = {
        "root": str(work.store.root.absolute()),
        "tokenizer": str(work.tokenizer.absolute()),
        "settings": work.settings,
        "tasks": tasks,
    }
    write_json(plan, content, indent=None)


def read_plan(plan: Path, task: int) -> TokenizeWork:
    """What one task has to do.

    Raises:
        DataError: the plan is damaged.
        UserError: it is not there, or has no such task.
    """
    content = read_json(plan)
    if content is None or not task < len(content["tasks"]):
        raise UserError(f"there is no plan for task {task}", file=plan)
    rows = [dict(row) for row in content["tasks"][task]]
    files = {row.pop("object"): RawFile(**row) for row in rows}
    return TokenizeWork(open_store(content["root"]), files, Path(content["tokenizer"]), content["settings"])


def _clear_plans(state: Path) -> None:
    for plan in state.glob(f"{_PLAN}*.json"):
        plan.unlink(missing_ok=True)


def main(plan: Path) -> None:
    """Make the objects of one task that are not there yet."""
    from evo_core.data.tokenize.fan_out import WorkerKilled

    with job.command("data.tokenize"):
        whole = read_plan(plan, int(os.environ["SLURM_ARRAY_TASK_ID"]))
        done = whole.done()
        left = whole.without(done)
        total, before = whole.bytes, whole.bytes - left.bytes
        print(f"{len(left.files)} of {len(whole.files)} files to tokenize, {len(done)} done before", flush=True)

        def on_progress(size: int, _: int, tokens: int) -> None:
            job.report_progress(before + size, total, "bytes", tokens=tokens)

        cores = os.environ.get("SLURM_CPUS_PER_TASK", "")
        try:
            left.carry_out(
                workers=int(cores) if cores.isdecimal() else None,
                on_progress=on_progress,
                # In one write: files end in several threads at once, and `print` writes the end of a line by itself.
                on_file=lambda file: print(f"tokenized {file.path}\n", end="", flush=True),
            )
        except WorkerKilled as killed:  # no mistake of the user's here: another try may have more room
            raise MemoryError(f"{killed.message}; fewer runtime.cpus, or --mem in sbatch_args") from None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
