"""How it is decided whether a Slurm job has ended, and how.

The word of the job's own batch script counts first; then what Slurm shows. A client without an answer says nothing:
such a job neither ended nor failed. A job that Slurm does not know and that left no word is lost only after a grace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evo_core.cause import NODE, OUT_OF_MEMORY
from evo_core.job import USER_ERROR
from tasks.launch.causes import CAUSES, Cause, with_cause
from tasks.launch.commands import Seen

ENDS = {
    "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED",
    "REVOKED",
}  # fmt: skip
"""States in which a job no longer runs. All others are not ends: COMPLETING, CONFIGURING, REQUEUED, SUSPENDED, ..."""

SETTLE = 15.0
"""Seconds that an end has to last before it is believed without the script's word: a requeue passes through one."""


_BY_STATE = {"NODE_FAIL": NODE, "BOOT_FAIL": NODE, "OUT_OF_MEMORY": OUT_OF_MEMORY}


@dataclass(frozen=True)
class Ended:
    """A job's end.

    Attributes:
        how: a phrase for a failure's message; empty on success.
        user_error: whether trying again cannot help.
        cause: why the last try failed, where the batch script has found it out.
        restarts: tries before the last one.
        lost: whether Slurm itself lost it, by no fault of what it ran.
    """

    success: bool
    how: str = ""
    user_error: bool = False
    cause: Cause | None = None
    restarts: int = 0
    lost: bool = False

    def told(self, message: str) -> str:
        """A failure's message with its cause in front and the number of tries behind."""
        tries = f" (tried {self.restarts + 1} times)" if self.restarts else ""
        return (with_cause(self.cause, message) if self.cause else message) + tries


class JobOutcome:
    """Weighs what is seen of one job over time."""

    def __init__(self, lost_after: float) -> None:
        self.lost_after = lost_after
        self._ended_since: float | None = None
        self._unknown_since: float | None = None

    def by_marker(self, marker: dict[str, Any] | None) -> Ended | None:
        """The end that the batch script itself vouches for."""
        if marker is None or marker.get("reason") == "terminated":
            return None
        if marker.get("reason") == "walltime":
            return Ended(False, "the wall time was up")
        code = int(marker.get("exit_code", 1))
        if code == 0:
            return Ended(True)
        cause = Cause(marker["cause"], str(marker.get("where", ""))) if marker.get("cause") in CAUSES else None
        how, tries = f"exit status {code}", int(marker.get("restarts", 0))
        return Ended(False, how, user_error=code == USER_ERROR, cause=cause, restarts=tries)

    def by_slurm(self, seen: Seen | None, marker: dict[str, Any] | None, now: float) -> Ended | None:
        """The end that Slurm's answer shows, None while there is none or it is not sure yet.

        Args:
            seen: Slurm's answer; None when it does not know the job.
            marker: the script's word, when it decides nothing by itself.
            now: seconds on a clock that never goes back.
        """
        if seen is None:
            self._ended_since = None
            self._unknown_since = now if self._unknown_since is None else self._unknown_since
            if marker is not None:
                return Ended(False, "something ended it (SIGTERM) and Slurm no longer knows it")
            if now - self._unknown_since < self.lost_after:
                return None
            return Ended(False, "Slurm no longer knows it and it left no word of how it ended: lost", lost=True)
        self._unknown_since = None
        if seen.state not in ENDS:
            self._ended_since = None
            return None
        self._ended_since = now if self._ended_since is None else self._ended_since
        if now - self._ended_since < self._patience(seen.state, marker):
            return None
        if seen.state == "COMPLETED":
            return Ended(False, "Slurm calls it COMPLETED but it left no word (is the state folder on a shared disk?)")
        how = f"Slurm: {seen.state}" + (f" ({seen.reason})" if seen.reason not in ("", "None") else "")
        cause, lost = _BY_STATE.get(seen.state), seen.state in ("NODE_FAIL", "BOOT_FAIL")
        return Ended(False, how, cause=Cause(cause, seen.nodes) if cause else None, lost=lost)

    def silence(self) -> None:
        """Slurm gave no answer: waiting for certainty starts anew."""
        self._ended_since = self._unknown_since = None

    def _patience(self, state: str, marker: dict[str, Any] | None) -> float:
        if state == "COMPLETED":
            return self.lost_after
        if state in ("CANCELLED", "DEADLINE"):
            return 0.0  # no requeue passes through these
        return 0.0 if marker is not None and state in ("TIMEOUT", "FAILED") else SETTLE
