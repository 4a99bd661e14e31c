"""Jobs of the tests and what is seen of them while they run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.launch.launcher import Job, Launcher, LaunchRuntime

ROOT = Path(__file__).parents[3]
STAND_IN = "tests.tasks.launch.stand_in"


class Run:
    """One call of `Launcher.run` in a thread, with all that it hands on."""

    def __init__(self, launcher: Launcher, job: Job) -> None:
        self.job = job
        self.lines: list[str] = []
        self.progress: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(launcher,), daemon=True)
        self._thread.start()

    def _run(self, launcher: Launcher) -> None:
        try:
            launcher.run(self.job, stop=self._stop, on_progress=self.progress.append, on_line=self.lines.append)
        except BaseException as error:
            self.error = error

    def wait_for_line(self, text: str, seconds: float = 30) -> None:
        wait_until(lambda: any(text in line for line in self.lines), f"{text!r} in {self.lines}", seconds)

    def stop(self) -> None:
        self._stop.set()

    def end(self, seconds: float = 60) -> BaseException | None:
        """Wait for the end; returns what was raised."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"still running after {seconds} s: {self.lines}"
        return self.error

    def succeed(self, seconds: float = 60) -> None:
        if error := self.end(seconds):
            raise error

    def printed(self) -> list[str]:
        """The job's own lines, without the launcher's and Slurm's."""
        return [line for line in self.lines if not line.startswith(("[evo]", "srun:", "slurmstepd"))]


def make_job(
    folder: Path, *args: str, attempt: int = 1, module: str = STAND_IN, environment: dict[str, str] | None = None,
    **runtime: Any,
) -> Job:  # fmt: skip
    """A job whose state lies in `folder`."""
    return Job(
        name=f"evo-test-{folder.name[:20]}",
        module=module,
        args=args,
        state=folder,
        log=folder / f"log-{attempt}.txt",
        runtime=LaunchRuntime(**runtime),
        attempt=attempt,
        environment=environment or {},
    )


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def processes_of(state: Path) -> list[int]:
    """Living processes that carry this job folder in their environment."""
    found = []
    mark = f"EVO_JOB_FOLDER={state}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            ended = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if mark in variables and not ended and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
