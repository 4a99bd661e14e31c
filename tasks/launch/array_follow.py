"""Following the tasks of one Slurm array to their ends.

Each task leaves its own word of how it ended; all of them together cost one question to Slurm, now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.launch.cluster import SlurmCluster
from tasks.launch.commands import Seen, SlurmCommands, SlurmRefused, SlurmSilent
from tasks.launch.follow import NOTE, failure, job_error, read_progress
from tasks.launch.followed import Followed
from tasks.launch.job_outcome import ENDS, Ended, JobOutcome
from tasks.launch.launcher import JobFailed
from tasks.launch.record import JobRecord, read_record, task_folder, task_marker

_LOOK = 0.5
"""Seconds between looks at the files of a hundred tasks, and at least between any two."""
_GONE_WITHIN = 60.0
"""Seconds that tasks which are not wanted any more may take to leave their nodes."""


class TasksLost(JobFailed):
    """No task failed by itself; some were lost, with their nodes or by Slurm. A new array may do better."""


def array_has_ended(state: Path, record: JobRecord) -> bool:
    """Whether every task of a recorded array has left word of its end; False for a job that is no array."""
    outcome = JobOutcome(0)
    ended = [outcome.by_marker(task_marker(state, record, task)) is not None for task in range(record.tasks)]
    return bool(ended) and all(ended)


class ArrayFollow(Followed):
    """Hands on what the tasks of an array have done together, and tells how they ended."""

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
        self._on_progress = on_progress
        self._outcomes = {task: JobOutcome(cluster.lost_seconds) for task in range(record.tasks)}
        self._ends: dict[int, Ended] = {}
        self._done: dict[int, dict[str, Any]] = {}
        self._look_every = _LOOK * max(1.0, record.tasks / 100)

    def follow(self, stop: threading.Event) -> None:
        """Return when every task has succeeded. After a mistake of the user's the other tasks are ended.

        Raises:
            JobFailed: a task ended without success; TasksLost where none did so by itself.
            Stopped: `stop` was set; the array goes on.
        """
        while len(self._ends) < self.record.tasks:
            self._look()
            if (mistake := self._mistake()) is not None:
                self._end_the_others()
                raise mistake
            if len(self._ends) < self.record.tasks and stop.wait(self._look_every):
                raise self._stopped()
        self._progress()
        self._raise_failure()

    def _look(self) -> None:
        """Look at the tasks' files, and now and then ask Slurm about those that left no word."""
        left = [task for task in self._outcomes if task not in self._ends]
        for task in left:
            self._take(task, self._outcomes[task].by_marker(task_marker(self.state, self.record, task)))
        self._progress()
        left = [task for task in left if task not in self._ends]
        if not left or not self._is_due():
            return
        try:
            seen = self._ask(left)
        except SlurmSilent as silent:
            for task in left:
                self._outcomes[task].silence()
            self._say(f"Slurm does not answer ({silent}); asking again")
            return
        for task in left:
            marker = task_marker(self.state, self.record, task)
            self._take(task, self._outcomes[task].by_slurm(seen.get(task), marker, time.monotonic()))
        self._tell(left, seen)

    def _ask(self, left: list[int]) -> dict[int, Seen]:
        assert self.record.job_id is not None
        seen = self.commands.look_tasks(self.record.job_id)
        if any(task not in seen for task in left):
            seen = self.commands.account_tasks(self.record.job_id, self.record.submitted) | seen
        return seen

    def _take(self, task: int, end: Ended | None) -> None:
        if end is not None:
            self._ends[task] = end
            if not end.success:
                self._on_line(f"{NOTE}task {task} of {self.record}: {end.told(end.how)}")

    def _tell(self, left: list[int], seen: dict[int, Seen]) -> None:
        states = [seen[task].state if task in seen else "unknown to Slurm" for task in left]
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        self._say(f"{counts}, {len(self._ends)} of {self.record.tasks} tasks ended")

    def _progress(self) -> None:
        """The sum of what the tasks report."""
        before = dict(self._done)
        for task in self._outcomes:
            if (progress := read_progress(task_folder(self.state, task))) is not None:
                self._done[task] = progress
        if self._done and self._done != before:
            reports = self._done.values()
            sums = {name: sum(report.get(name) or 0 for report in reports) for name in ("done", "tokens")}
            self._on_progress({"unit": next(iter(reports)).get("unit", "bytes"), **sums})

    def _mistake(self) -> JobFailed | None:
        """The user's mistake that a task ended by."""
        for task, end in self._ends.items():
            error = None if end.success else job_error(task_folder(self.state, task))
            if error is not None and error[1]:
                return JobFailed(error[0], user_error=True, log=self._log(task))
            if end.user_error:
                return self._failed(task)
        return None

    def _raise_failure(self) -> None:
        failed = [task for task, end in self._ends.items() if not end.success]
        if not failed:
            return
        if (read_record(self.state) or self.record).cancelled:
            raise JobFailed(f"{self.record} was cancelled", log=self._log(failed[0]))
        failure = self._failed(failed[0], len(failed))
        if all(self._ends[task].lost for task in failed):
            raise TasksLost(failure.message, log=failure.log)
        raise failure

    def _failed(self, task: int, together: int = 1) -> JobFailed:
        end, log = self._ends[task], self._log(task)
        error = job_error(task_folder(self.state, task))
        how = f"task {task} of {self.record} failed: {end.how}"
        message = end.told(error[0]) if error is not None else end.told(failure(log, 0, how))
        others = f" ({together} tasks failed; the others: {self.state / 'array'})" if together > 1 else ""
        return JobFailed(message + others, user_error=end.user_error, log=log)

    def _end_the_others(self) -> None:
        """End the tasks that are left, and wait until they write no more."""
        assert self.record.job_id is not None
        deadline = time.monotonic() + _GONE_WITHIN
        said = ""
        while time.monotonic() < deadline:
            try:
                self.commands.cancel(self.record.job_id)
                if all(seen.state in ENDS for seen in self.commands.look_tasks(self.record.job_id).values()):
                    return
            except (SlurmSilent, SlurmRefused) as error:
                said = f": {error}"
            time.sleep(_LOOK)
        self._on_line(f"{NOTE}the other tasks of {self.record} may go on{said}; scancel {self.record.job_id} ends them")

    def _log(self, task: int) -> Path:
        return task_folder(self.state, task) / self.record.log.name
