"""Runs one command and sees to it that nothing of it outlives the process that asked for it.

`python supervisor.py PARENT GRACE COMMAND...` exits as the command does (128 + n for signal n). When PARENT dies, by
`kill -9` too, the command and everything below it is killed at once. SIGTERM is handed to the command; what still
runs GRACE seconds later is killed. And when the command has ended, whatever it left behind is killed as well:
torchrun gives each rank a session of its own, so ending a process group would miss them.

It is started with ``python -I -S`` and loads nothing but the standard library and `evo_core.process`, so that it costs
milliseconds. Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # -I leaves out whatever would lead there

from evo_core.process import descendants

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LOOK = 0.1
"""Seconds between looks at the parent and the command."""
PATIENCE = 20.0
"""Seconds for killed processes to be gone."""


class Supervisor:
    """The command and its descendants, all of which stay below this process: it is their reaper."""

    def __init__(self, parent: int, grace: float, command: list[str]) -> None:
        self.parent, self.grace = parent, grace
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._deadline: float | None = None
        self._asked = False
        signal.signal(signal.SIGTERM, self._ask)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the terminal's: the run decides what they mean
        # one thread only, so code between fork and exec is safe here
        self._command = subprocess.Popen(command, start_new_session=True, preexec_fn=self._in_child)
        if self._asked:
            self._forward()

    def _in_child(self) -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # what is ignored stays ignored across exec
        self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def _ask(self, number: int, frame: object) -> None:
        first, self._asked = not self._asked, True
        if first and hasattr(self, "_command"):
            self._forward()

    def _forward(self) -> None:
        self._deadline = time.monotonic() + self.grace
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._command.pid, signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the command, the parent's death or the end of the grace; return the exit status."""
        while True:
            if os.getppid() != self.parent or (self._deadline is not None and time.monotonic() > self._deadline):
                break
            try:
                self._command.wait(LOOK)
                break
            except subprocess.TimeoutExpired:
                pass
        self._kill_all()
        status = self._command.poll()
        if status is None:
            return 128 + signal.SIGKILL
        return status if status >= 0 else 128 - status

    def _kill_all(self) -> None:
        """Kill every descendant, again until none is left (a process may fork while it is looked for).

        One that hangs in the kernel (a dead disk, a wedged GPU) cannot be killed; it is not waited for longer than
        `PATIENCE`.
        """
        deadline = time.monotonic() + PATIENCE
        while (below := descendants(os.getpid())) and time.monotonic() < deadline:
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in below - {self._command.pid}:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._command.wait(LOOK)


if __name__ == "__main__":
    sys.exit(Supervisor(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]).wait())
