"""Jobs on this machine: children of the run, which end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evo_core.cores import cores
from evo_core.errors import ConfigError
from evo_core.job import STUCK, USER_ERROR
from evo_core.storage.identity import alive, record_of
from tasks.launch import supervisor
from tasks.launch.causes import find_cause, with_cause
from tasks.launch.cluster import LocalCluster, SlurmCluster, load_cluster
from tasks.launch.environment import clean_environment, job_variables
from tasks.launch.follow import NOTE, LogFollower, ProgressFollower, failure, job_error, size_of, text_from
from tasks.launch.launcher import Job, JobFailed, LaunchRuntime, Stopped
from tasks.launch.memory_kills import memory_kills
from tasks.launch.record import read_record
from tasks.launch.restarts import Restarts
from tasks.store.json_file import read_object, write_json

PROCESS = "local.json"
"""In the state folder: the process that a local job runs under, for `cancel`."""

_LOOK = 0.2
_PAUSE = 1.0
_MARGIN = 25.0
"""Seconds that the supervisor may take beyond the grace, to kill and to see that all is gone."""


class LocalLauncher:
    """Runs a job with torchrun, or as a plain module for a single rank."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    def preflight(self, runtime: LaunchRuntime | None = None) -> None:
        """Nothing to check: this machine is here."""

    def alive(self, state: Path) -> bool:
        """Never: a local job ends with its run, so there is nothing to attach to."""
        return False

    def run(
        self,
        job: Job,
        *,
        stop: threading.Event,
        on_progress: Callable[[dict[str, Any]], None],
        on_line: Callable[[str], None],
    ) -> None:
        """Run the job here and restart it after a crash; see `Launcher.run`."""
        refuse_beside_slurm(job.state)
        job.state.mkdir(parents=True, exist_ok=True)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        start = size_of(job.log)
        log = LogFollower(job.log, start, on_line)
        restarts = Restarts(job.runtime.max_restarts)
        while True:
            for left in ("error.json", "progress.json"):
                (job.state / left).unlink(missing_ok=True)
            began, kills = size_of(job.log), memory_kills()
            status = self._run_once(job, stop, log, ProgressFollower(job.state, on_progress))
            cancelled = (read_object(job.state / PROCESS) or {}).get("cancelled")
            (job.state / PROCESS).unlink(missing_ok=True)
            if stop.is_set():
                raise Stopped(f"{job.name} was stopped; the next run goes on from its newest checkpoint")
            if status == 0:
                return
            own = job_error(job.state)
            if cancelled:
                raise JobFailed(f"{job.name} was cancelled", log=job.log)
            message, user_error = own or (failure(job.log, start, _ended(status)), status == USER_ERROR)
            if user_error:
                raise JobFailed(message, user_error=True, log=job.log)
            printed = text_from(job.log, began)
            cause = find_cause(job.state, status, printed, killed_for_memory=memory_kills() > kills)
            if not restarts.another(cause, progressed=(job.state / "progress.json").exists()):
                raise JobFailed(with_cause(cause, message) + restarts.tries(), log=job.log)
            start = size_of(job.log)
            on_line(f"{NOTE}{with_cause(cause, own[0] if own else _ended(status))}; {restarts.budget(cause)}")
            if stop.wait(_PAUSE):
                raise Stopped(f"{job.name} was stopped")

    def cancel(self, state: Path) -> str | None:
        """End the local job that another process on this host runs for this key."""
        found = read_object(state / PROCESS)
        if found is None or not alive(found):
            return None
        write_json(state / PROCESS, {**found, "cancelled": True})
        os.kill(found["pid"], signal.SIGTERM)
        deadline = time.monotonic() + self.cluster.grace_seconds + _MARGIN
        while alive(found) and time.monotonic() < deadline:
            time.sleep(_LOOK / 4)
        return f"local job {found.get('name', '?')} (process {found['pid']})"

    def _run_once(self, job: Job, stop: threading.Event, log: LogFollower, progress: ProgressFollower) -> int:
        """One try; returns its exit status. The job is gone when this returns or raises."""
        with job.log.open("ab") as out:
            process = subprocess.Popen(
                [
                    *(
                        sys.executable,
                        "-I",
                        "-S",
                        supervisor.__file__,
                        str(os.getpid()),
                        str(self.cluster.grace_seconds),
                    ),
                    *command(job),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment(job),
                start_new_session=True,
            )
        write_json(job.state / PROCESS, {"name": job.name, **record_of(process.pid)})
        try:
            asked = False
            while process.poll() is None:
                if stop.is_set() and not asked:
                    process.terminate()
                    asked = True
                log.poll()
                progress.poll()
                if asked:
                    time.sleep(_LOOK)
                else:
                    stop.wait(_LOOK)
            log.poll(rest=True)
            progress.poll()
            return process.returncode
        finally:
            _end(process, self.cluster.grace_seconds)

    def _environment(self, job: Job) -> dict[str, str]:
        threads = job.runtime.cpus_per_rank or max(1, cores() // job.runtime.ranks)
        return {
            **clean_environment(),
            **job_variables(str(job.state), threads, {**self.cluster.variables(), **job.environment}),
            "EVO_DIE_WITH_PARENT": "1",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(self.cluster.grace_seconds) or 1),
        }


def command(job: Job) -> list[str]:
    """The job's command line on this machine.

    torchrun itself restarts nothing: it would try a user's mistake again, and ranks that meet again in an old
    rendezvous can read each other's dead addresses. The launcher starts everything anew instead.
    """
    module = ["-m", job.module, *job.args]
    if job.runtime.ranks == 1:
        return [sys.executable, *module]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"]
    return [*torchrun, "--nproc-per-node", str(job.runtime.ranks), *module]


def _ended(status: int) -> str:
    if status == STUCK:
        return "no rank of the job made progress, and its watchdog ended it"
    if status > 128:
        try:
            return f"the job was killed by {signal.Signals(status - 128).name}"
        except ValueError:
            pass
    return f"the job ended with exit status {status}"


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Leave nothing running, whatever made us leave."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(grace + _MARGIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def refuse_beside_slurm(state: Path) -> None:
    """Refuse to do on this machine what a Slurm job that is alive does for the same key.

    Raises:
        ConfigError: there is such a job.
    """
    from tasks.launch.slurm import SlurmLauncher

    record = read_record(state)
    if record is None:
        return
    cluster = load_cluster(record.cluster)
    if isinstance(cluster, SlurmCluster) and SlurmLauncher(cluster).alive(state):
        raise ConfigError(
            f"{record} makes this artifact already",
            key="runtime.cluster",
            hint=f"set it to {record.cluster} to follow that job, or end it: scancel {record.job_id or record.name}",
        )
