"""Jobs on a Slurm cluster: submitted once, followed by whoever asks, alive without any of them."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from evo_core.config.suggest import suggest
from evo_core.storage.files import delete, write_file
from tasks.launch.acceptance import check_accepted, hint_for
from tasks.launch.array_follow import ArrayFollow, array_has_ended
from tasks.launch.cluster import SlurmCluster
from tasks.launch.commands import SlurmCommands, SlurmRefused, SlurmSilent
from tasks.launch.follow import NOTE, job_error, size_of
from tasks.launch.job_outcome import ENDS, SETTLE, Ended, JobOutcome
from tasks.launch.launcher import Job, LaunchRuntime, Stopped
from tasks.launch.lost_nodes import excluded_nodes
from tasks.launch.record import (
    ARRAY,
    RECORD,
    JobRecord,
    exit_marker,
    exit_marker_path,
    marked_id,
    nodes_path,
    read_record,
    submission_lock,
    task_folder,
    write_record,
)
from tasks.launch.script import batch_script, sbatch_arguments
from tasks.launch.slurm_follow import LOOK, OFFSET, SlurmFollow, look_up
from tasks.store.json_file import write_json

_ASK_AGAIN = 2.0
_GONE_WITHIN = 180.0
"""Seconds that a cancelled job may take to leave its nodes (KillWait and an epilog)."""


class SlurmLauncher:
    """Runs jobs with `sbatch` on the cluster that the clients on PATH talk to."""

    def __init__(self, cluster: SlurmCluster, commands: SlurmCommands | None = None) -> None:
        self.cluster = cluster
        self.commands = commands or SlurmCommands()

    def preflight(self, runtime: LaunchRuntime | None = None) -> None:
        """Raise `ConfigError` when jobs cannot be submitted from here; see `Launcher.preflight`."""
        if missing := self.commands.missing():
            raise self.cluster.error(
                f"Slurm's clients are not installed here (no {', '.join(missing)})",
                hint="run on a login node of the cluster, or set runtime.cluster to local",
            )
        self.cluster.variables()
        try:
            self.commands.ping()
            known = self.commands.partitions() if self.cluster.partition else []
        except (SlurmSilent, SlurmRefused) as error:
            raise self.cluster.error(
                f"the Slurm controller does not answer: {error}",
                hint="check `scontrol ping` and SLURM_CONF, or set runtime.cluster to local",
            ) from None
        for name in (self.cluster.partition or "").split(","):
            if name and name not in known:
                message = f"this Slurm has no partition {name!r}{suggest(name, known)}"
                raise self.cluster.error(message, key="partition", hint=f"it has {', '.join(known)}")
        if runtime is not None:
            check_accepted(self.cluster, self.commands, runtime)

    def alive(self, state: Path) -> bool:
        """Whether the recorded job waits or runs. True also while nobody can tell."""
        record = read_record(state)
        if record is None:
            return False
        try:
            if record.job_id is None:
                with submission_lock(state, give_up=lambda: True):
                    record = self._identified(state)
            if record is None or JobOutcome(0).by_marker(exit_marker(state, record)) is not None:
                return False
            seen = look_up(self.commands, record)
        except (SlurmSilent, BlockingIOError):  # the lock is held by one who submits it right now
            return True
        return seen is not None and seen.state not in ENDS

    def run(
        self,
        job: Job,
        *,
        stop: threading.Event,
        on_progress: Callable[[dict[str, Any]], None],
        on_line: Callable[[str], None],
    ) -> None:
        """Submit the job or attach to the recorded one, and follow it to its end; see `Launcher.run`.

        Stopping leaves the job in the queue or running. A recorded job that succeeded unwatched counts as this
        call's; one that failed unwatched is submitted anew, except after a user's mistake.
        """
        self._check_shared(job)
        try:
            with submission_lock(job.state, give_up=stop.is_set) as lock:
                record = self._recorded(job, stop, on_line) or self._submit(job, lock, stop, on_line)
        except BlockingIOError as error:
            raise Stopped(f"{job.name} was stopped: {error}") from None
        follow = ArrayFollow if record.tasks else SlurmFollow
        follow(self.cluster, self.commands, job.state, record, on_progress, on_line).follow(stop)

    def cancel(self, state: Path) -> str | None:
        """End the recorded job and wait until it has left its nodes."""
        record = read_record(state)
        if record is None:
            return None
        deadline = time.monotonic() + _GONE_WITHIN
        try:
            if record.job_id is None:
                with submission_lock(state, give_up=lambda: time.monotonic() > deadline):
                    record = self._identified(state)
            if record is None or record.job_id is None:
                return None
            seen = look_up(self.commands, record)
            if seen is None or seen.state in ENDS:
                return None
            # Before scancel: whoever finds the record after a crash between the two takes the job for given up.
            write_record(state, record.model_copy(update={"cancelled": True}))
            self.commands.cancel(record.job_id)
            while time.monotonic() < deadline:
                seen = look_up(self.commands, record)
                if seen is None or seen.state in ENDS:
                    return str(record)
                time.sleep(LOOK)
        except (SlurmSilent, SlurmRefused, BlockingIOError) as error:
            return f"{record}: not ended: {error}"
        return f"{record}, which has not left its nodes yet"

    def _check_shared(self, job: Job) -> None:
        root = self.cluster.shared_root
        if root is not None and not job.state.resolve().is_relative_to(root.expanduser().resolve()):
            raise self.cluster.error(
                f"the store ({job.state}) is not under {root}, which is what the nodes can see",
                key="shared_root",
                hint="give a --root under it",
            )

    def _identified(self, state: Path) -> JobRecord | None:
        """The record with its job's id, looked up by name where a crash kept it from being written. None when Slurm
        never took the job. Under the submission lock.

        Raises:
            SlurmSilent: no answer.
        """
        record = read_record(state)
        if record is None or record.job_id is not None:
            return record
        # What the job itself says is there also when Slurm has forgotten it and its accounting does not answer.
        job_id = marked_id(state, record) or self.commands.find(record.name, record.submitted)
        if job_id is None:
            return None
        record = record.model_copy(update={"job_id": job_id})
        write_record(state, record)
        return record

    def _recorded(self, job: Job, stop: threading.Event, on_line: Callable[[str], None]) -> JobRecord | None:
        """The recorded job if it is the one to follow, None if a new one has to be submitted."""
        outcome = JobOutcome(SETTLE)
        for _ in _asking(stop, f"stopped before it was known whether the job of {job.name} still runs"):
            try:
                record = self._identified(job.state)
                if record is None:
                    return None
                if array_has_ended(job.state, record):
                    return None  # what it has not made is for a new one
                marker = exit_marker(job.state, record)
                end = outcome.by_marker(marker)
                if end is None:
                    seen = look_up(self.commands, record)
                    end = outcome.by_slurm(seen, marker, time.monotonic())
                    if end is None and seen is not None and seen.state not in ENDS and not record.cancelled:
                        on_line(f"{NOTE}attached to {record}")
                        return record
            except SlurmSilent as silent:
                outcome.silence()
                on_line(f"{NOTE}Slurm does not answer ({silent}); asking again")
                continue
            if end is not None:
                return record if self._counts(job, record, end, on_line) else None
        raise AssertionError("asking ends by returning or by Stopped")

    def _counts(self, job: Job, record: JobRecord, end: Ended, on_line: Callable[[str], None]) -> bool:
        """Whether the end of a job that nobody watched is this call's result."""
        # Its files lie elsewhere, its end was wanted, or it is an array, whose rest is for a new one.
        if record.attempt != job.attempt or record.cancelled or record.tasks:
            return False
        error = job_error(job.state)
        if end.success or end.user_error or (error is not None and error[1]):
            return True
        on_line(f"{NOTE}{record} failed while nobody watched: {error[0] if error else end.how}; submitting it again")
        return False

    def _submit(self, job: Job, lock: int, stop: threading.Event, on_line: Callable[[str], None]) -> JobRecord:
        """Write the intent, submit, write the id."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        record = JobRecord(
            cluster=self.cluster.name,
            # A name of its own for every submission: looked up after a crash, it finds this job or none.
            name=f"{job.name}-{secrets.token_hex(3)}",
            attempt=job.attempt,
            log=job.log,
            log_start=size_of(job.log),
            submitted=time.time(),
            host=socket.gethostname(),
            nodes=job.runtime.nodes,
            tasks=job.tasks,
        )
        arguments = sbatch_arguments(self.cluster, job, record.name, self._left_out(job, on_line))
        script = job.state / f"job-{job.attempt}.sh"
        write_file(script, batch_script(self.cluster, job, arguments))
        self._clear(job)
        write_json(job.state / OFFSET, {"offset": record.log_start})
        # The intent before the deed: whoever dies from here on leaves a name by which the job is found.
        write_record(job.state, record)
        job_id = self._sbatch(job, record, [*arguments], script, lock, stop, on_line)
        record = record.model_copy(update={"job_id": job_id})
        write_record(job.state, record)
        on_line(f"{NOTE}submitted {record}")
        return record

    def _left_out(self, job: Job, on_line: Callable[[str], None]) -> list[str]:
        """Nodes that earlier jobs of the key were lost on. None while Slurm does not say which nodes it has."""
        try:
            out, said = excluded_nodes(self.cluster, self.commands, job.state, job.runtime.nodes)
        except (SlurmSilent, SlurmRefused):
            return []
        if said:
            on_line(f"{NOTE}{said}")
        return out

    def _sbatch(
        self,
        job: Job,
        record: JobRecord,
        arguments: list[str],
        script: Path,
        lock: int,
        stop: threading.Event,
        on_line: Callable[[str], None],
    ) -> str:
        """Submit until Slurm says yes or no. Without an answer the job may have been taken: its name tells."""
        references, values = self.cluster.references(), self.cluster.variables()
        variables = {name: values[name] for name in references}
        in_doubt = False
        for _ in _asking(stop, f"{job.name} was stopped before Slurm took it"):
            try:
                taken = self.commands.find(record.name, record.submitted) if in_doubt else None
                # sbatch inherits the lock: if this process is killed meanwhile, the next run waits until it is clear
                # whether Slurm took the job, in place of looking the name up too early and submitting a second one.
                return taken or self.commands.submit(arguments, script, variables, hold=lock)
            except SlurmSilent as silent:
                in_doubt = True
                on_line(f"{NOTE}Slurm does not answer ({silent}); asking again")
            except SlurmRefused as refused:
                (job.state / RECORD).unlink(missing_ok=True)
                key, hint = hint_for(self.cluster, str(refused), script)
                raise self.cluster.error(f"Slurm refused the job: {refused}", key=key, hint=hint) from None
        raise AssertionError("asking ends by returning or by Stopped")

    def _clear(self, job: Job) -> None:
        """Remove what an earlier job of this attempt left, so that nothing of it is taken for the new one's."""
        names = ["error.json", "progress.json", f"restarts-{job.attempt}", f"walltime-{job.attempt}"]
        own = [exit_marker_path(job.state, job.attempt), nodes_path(job.state, job.attempt)]
        for left in [*own, *(job.state / name for name in names)]:
            left.unlink(missing_ok=True)
        delete(job.state / ARRAY)
        for task in range(job.tasks):
            task_folder(job.state, task).mkdir(parents=True)


def _asking(stop: threading.Event, told: str) -> Iterator[None]:
    """Go round with a pause, until the caller has its answer or `stop` is set.

    Raises:
        Stopped: with `told`.
    """
    while True:
        yield
        if stop.wait(_ASK_AGAIN):
            raise Stopped(told)
