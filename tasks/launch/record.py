"""What is kept in a key's state folder so that a Slurm job can be found again: ``job.json``.

The record is on disk before anything is submitted. Whoever comes next, after a crash or beside a run that still goes
on, learns from it which job belongs to the key, which attempt it works for and where its log is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from evo_core.storage.lock import locked
from tasks.store.json_file import read_object, write_json

RECORD = "job.json"
ARRAY = "array"
"""In the state folder: a folder for each task of an array, by its number."""


class JobRecord(BaseModel):
    """One Slurm job, submitted or about to be.

    Attributes:
        cluster: the cluster's name or file, as the runtime names it.
        name: the job's name, unique to this submission.
        attempt: the attempt of the artifact that the job writes.
        job_id: Slurm's id; None from the moment the intent is written until `sbatch` has answered.
        log: the job's log file.
        log_start: bytes that were in the log when the job was submitted; its own lines follow.
        submitted: unix seconds of the intent.
        host: the machine that submitted.
        nodes: how many it asks for.
        tasks: how many an array has; 0 for a job that is none.
        cancelled: whether it was ended by `cancel`.
    """

    model_config = ConfigDict(frozen=True)

    cluster: str
    name: str
    attempt: int
    log: Path
    log_start: int
    submitted: float
    host: str
    job_id: str | None = None
    nodes: int = 1
    tasks: int = 0
    cancelled: bool = False

    def __str__(self) -> str:
        array = f", an array of {self.tasks}" if self.tasks else ""
        return f"Slurm job {self.job_id or '(no id yet)'} ({self.name}{array})"


def read_record(state: Path) -> JobRecord | None:
    """The job recorded in the state folder, or None."""
    found = read_object(state / RECORD)
    try:
        return None if found is None else JobRecord.model_validate(found)
    except ValidationError:
        return None


def read_attempt(state: Path) -> int | None:
    """The attempt that a recorded job writes, or None."""
    record = read_record(state)
    return None if record is None else record.attempt


def write_record(state: Path, record: JobRecord) -> None:
    """Replace the record, atomically and durably."""
    write_json(state / RECORD, record.model_dump(mode="json"))


def exit_marker_path(state: Path, attempt: int) -> Path:
    """Where the batch script of an attempt says how it ended."""
    return state / f"exit-{attempt}.json"


def exit_marker(state: Path, record: JobRecord) -> dict[str, Any] | None:
    """What the batch script of the recorded job left when it ended, or None while there is nothing.

    Its keys: job_id, restart, exit_code, reason, nodes, started, ended; of a last try that failed cause and where; and
    restarts, the number of tries before the last. The reason is ``exit`` (the command ended),
    ``walltime`` (it was told to end because the time was up) or ``terminated`` (something ended the job; no verdict
    by itself, for Slurm may run it again).
    """
    marker = read_object(exit_marker_path(state, record.attempt))
    return marker if marker is not None and str(marker.get("job_id")) == record.job_id else None


def task_folder(state: Path, task: int) -> Path:
    """The job folder of one task of an array: its progress, its error, its log and the word of how it ended."""
    return state / ARRAY / str(task)


def task_marker(state: Path, record: JobRecord, task: int) -> dict[str, Any] | None:
    """What the batch script left when this task of the recorded array ended; see `exit_marker`."""
    marker = read_object(exit_marker_path(task_folder(state, task), record.attempt))
    return marker if marker is not None and marker.get("job_id") == f"{record.job_id}_{task}" else None


def marked_id(state: Path, record: JobRecord) -> str | None:
    """The id in the exit marker of the recorded attempt. Nothing of an earlier job is left where one is submitted."""
    marker = read_object(exit_marker_path(state, record.attempt)) or {}
    job_id = str(marker.get("job_id", ""))
    return job_id if job_id.isdecimal() else None


def nodes_path(state: Path, attempt: int) -> Path:
    """Where the batch script of an attempt says which nodes it runs on, while it does not give them back itself."""
    return state / f"nodes-{attempt}"


@contextlib.contextmanager
def submission_lock(state: Path, give_up: Callable[[], bool]) -> Iterator[int]:
    """Only one process at a time decides whether a job has to be submitted, and submits it.

    Yields the lock's descriptor: a child that inherits it holds the lock until it ends. So after a `kill -9` in the
    middle of `sbatch` nobody looks for the job before that `sbatch` is through. On a file system without locks the
    name alone tells jobs apart.

    Args:
        give_up: asked while another process holds the lock.

    Raises:
        BlockingIOError: another process holds it, and `give_up` said yes.
    """
    state.mkdir(parents=True, exist_ok=True)
    busy = BlockingIOError(f"another process submits the job of {state}")
    with locked(state / "submit.lock", give_up=give_up, given_up=busy, must=False) as descriptor:
        yield descriptor
