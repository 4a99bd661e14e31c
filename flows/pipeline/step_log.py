"""The log of a step that runs in the run's own process, as a job's log is kept for one that is launched."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from evo_core.errors import UserError
from flows.pipeline.failures import reason
from tasks.launch.follow import NOTE
from tasks.launch.launcher import JobFailed


def log_path(state: Path, attempt: int) -> Path:
    """Where the log of an attempt is kept: what a job prints, or what a step of the run's own process says."""
    return state / f"log-{attempt}.txt"


class StepLog:
    """Lines with the time of day, added to what earlier tries of the attempt have left.

    A log that cannot be written costs no step. Of a launched step, whose job writes the log, only its end is noted, and
    only where no job has come to print anything.
    """

    def __init__(self, path: Path, *, launched: bool, conceal: Callable[[str], str]) -> None:
        self.path, self.launched, self._conceal = path, launched, conceal
        self._file: TextIO | None = None

    def began(self, run: str) -> None:
        """The step starts in this process."""
        if not self.launched:
            self._write(f"{NOTE}run {run}, process {os.getpid()} on {socket.gethostname()}")

    def say(self, line: str) -> None:
        """A line worth showing."""
        if not self.launched:
            self._write(line)

    def made(self, seconds: float) -> None:
        """The artifact is committed."""
        if not self.launched:
            self._write(f"{NOTE}made in {seconds:.1f} s")
        self.close()

    def ended(self, error: BaseException) -> None:
        """It is not: the step was stopped or failed; an error that is nobody's to mend comes with its traceback."""
        if not self.launched or not self.path.exists():
            if not isinstance(error, UserError | JobFailed) and isinstance(error, Exception):
                self._write("".join(traceback.format_exception(error)).rstrip())
            self._write(f"{NOTE}{'failed' if isinstance(error, Exception) else 'ended'}: {reason(error)}")
        self.close()

    def close(self) -> None:
        """Nothing more will be said."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            if self._file is None:
                self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
            self._file.write(f"{time.strftime('%H:%M:%S')} {self._conceal(text)}\n")
