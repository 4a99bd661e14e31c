"""What following one job and following an array share: when Slurm is asked, and what is said of its answers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from tasks.launch.cluster import SlurmCluster
from tasks.launch.commands import SlurmCommands
from tasks.launch.follow import NOTE
from tasks.launch.launcher import Stopped
from tasks.launch.record import JobRecord

_FIRST_QUESTION = 1.0
"""Seconds; the pause doubles from question to question, up to the cluster's `poll_seconds`."""


class Followed:
    """A recorded job that somebody follows."""

    def __init__(
        self,
        cluster: SlurmCluster,
        commands: SlurmCommands,
        state: Path,
        record: JobRecord,
        on_line: Callable[[str], None],
    ) -> None:
        self.cluster, self.commands, self.state, self.record = cluster, commands, state, record
        self._on_line = on_line
        self._interval, self._ask_at, self._said = _FIRST_QUESTION, 0.0, ""

    def _is_due(self) -> bool:
        """Whether Slurm is to be asked now; if so, the next time is later."""
        now = time.monotonic()
        if now < self._ask_at:
            return False
        self._interval = min(self._interval * 2, self.cluster.poll_seconds)
        self._ask_at = now + self._interval * random.uniform(0.8, 1.2)
        return True

    def _say(self, what: str) -> None:
        """Say what Slurm shows, if it is new."""
        if what != self._said:
            self._said = what
            self._on_line(f"{NOTE}Slurm job {self.record.job_id}: {what}")

    def _stopped(self) -> Stopped:
        return Stopped(
            f"{self.record} goes on without this run; run again to follow it, "
            f"or end it with: scancel {self.record.job_id}"
        )
