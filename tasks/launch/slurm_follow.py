"""Following one Slurm job from wherever it is to its end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tasks.launch.cluster import SlurmCluster
from tasks.launch.commands import Seen, SlurmCommands, SlurmRefused, SlurmSilent
from tasks.launch.follow import NOTE, LogFollower, ProgressFollower, failure, job_error
from tasks.launch.followed import Followed
from tasks.launch.job_outcome import ENDS, Ended, JobOutcome
from tasks.launch.launcher import JobFailed
from tasks.launch.lost_nodes import keep_away
from tasks.launch.record import JobRecord, exit_marker, read_record
from tasks.store.json_file import read_object, write_json

OFFSET = "log-offset.json"
"""In the state folder: how far the log was handed on, so that another follower repeats nothing."""

LOOK = 0.25
"""Seconds between looks at the job's files."""
NEVER = {
    "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints", "AccountNotAllowed",
    "QOSNotAllowed", "InvalidAccount", "InvalidQOS", "JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue",
    "launch failed requeued held", "launch_failed_requeued_held",
}  # fmt: skip
"""Reasons for waiting that time alone does not mend."""
_SAVE_OFFSET = 2.0


def look_up(commands: SlurmCommands, record: JobRecord) -> Seen | None:
    """The job as Slurm shows it, in its queue or its accounting; None when it is in neither.

    Raises:
        SlurmSilent: the controller gives no answer.
    """
    if record.job_id is None:
        return None
    if record.tasks:
        return look_up_array(commands, record)
    return commands.look(record.job_id) or commands.account(record.job_id, record.submitted)


def look_up_array(commands: SlurmCommands, record: JobRecord) -> Seen | None:
    """A task that waits or runs, else one that has ended; None when no task is known."""
    assert record.job_id is not None
    tasks = commands.look_tasks(record.job_id) or commands.account_tasks(record.job_id, record.submitted)
    return next((seen for seen in tasks.values() if seen.state not in ENDS), next(iter(tasks.values()), None))


class SlurmFollow(Followed):
    """Hands on a job's log and progress while it lives, and tells how it ended."""

    def __init__(
        self,
        cluster: SlurmCluster,
        commands: SlurmCommands,
        state: Path,
        record: JobRecord,
        on_progress: Callable[[dict[str, Any]], None],
        on_line: Callable[[str], None],
    ) -> None:
        super().__init__(cluster, commands, state, record, on_line)
        offset = (read_object(state / OFFSET) or {}).get("offset", record.log_start)
        self._log = LogFollower(record.log, offset, on_line)
        self._progress = ProgressFollower(state, on_progress)
        self._outcome = JobOutcome(cluster.lost_seconds)
        self._saved, self._saved_at = offset, 0.0
        self._lost_looked_for = False

    def follow(self, stop: threading.Event) -> None:
        """Return when the job has succeeded.

        Raises:
            JobFailed: it ended without success.
            Stopped: `stop` was set; the job goes on.
        """
        try:
            while (end := self._look()) is None:
                if stop.wait(LOOK):
                    raise self._stopped()
            time.sleep(LOOK)  # over a network file system the last lines may come after the word of the end
            self._log.poll(rest=True)
            self._progress.poll()
        finally:
            self._save_offset(at_once=True)
        if not end.success:
            self._fail(end)

    def _look(self) -> Ended | None:
        """Look at the job's files, and now and then ask Slurm."""
        self._log.poll()
        self._progress.poll()
        self._save_offset()
        marker = exit_marker(self.state, self.record)
        end = self._outcome.by_marker(marker)
        if end is not None or not self._is_due():
            return end
        try:
            seen = look_up(self.commands, self.record)
        except SlurmSilent as silent:
            self._outcome.silence()
            self._say(f"Slurm does not answer ({silent}); asking again")
            return None
        if seen is None:
            also = "; its accounting does not answer" if self.commands.accounting_silent else ""
            self._say(f"Slurm does not know it (any more){also}; waiting for its own word")
        else:
            detail = seen.nodes or (seen.reason if seen.reason != "None" else "")
            never = "; as it is asked for it may never start" if seen.reason in NEVER else ""
            self._say(f"{seen.state}{f' ({detail})' if detail else ''}{never}")
            self._after_node_failure(seen)
        return self._outcome.by_slurm(seen, marker, time.monotonic())

    def _after_node_failure(self, seen: Seen) -> None:
        """Where Slurm has put the job back because nodes were lost, keep it away from them."""
        if seen.state != "PENDING" or self._lost_looked_for:
            self._lost_looked_for = self._lost_looked_for and seen.state == "PENDING"
            return
        with contextlib.suppress(SlurmSilent, SlurmRefused):
            said = keep_away(self.cluster, self.commands, self.state, self.record)
            self._lost_looked_for = True
            if said:
                self._on_line(f"{NOTE}Slurm job {self.record.job_id}: {said}")

    def _save_offset(self, at_once: bool = False) -> None:
        if self._log.offset != self._saved and (at_once or time.monotonic() - self._saved_at > _SAVE_OFFSET):
            self._saved, self._saved_at = self._log.offset, time.monotonic()
            write_json(self.state / OFFSET, {"offset": self._saved})

    def _fail(self, end: Ended) -> NoReturn:
        record = read_record(self.state) or self.record
        if record.cancelled and record.name == self.record.name:
            raise JobFailed(f"{record} was cancelled", log=record.log)
        error = job_error(self.state)
        if error is not None:
            message, user_error = error
            told = message if user_error else end.told(message)
            raise JobFailed(told, user_error=user_error, log=record.log)
        how = end.told(f"{record} failed: {end.how}")
        raise JobFailed(failure(record.log, record.log_start, how), user_error=end.user_error, log=record.log)
