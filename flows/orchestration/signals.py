"""What a run does when it is told to stop.

The first SIGINT (Ctrl-C), SIGTERM or SIGHUP (the terminal was closed) asks its steps to end in order: training saves
a checkpoint first. A Ctrl-C after that is a person who does not want to wait: everything ends at once, whatever a
step is doing. SIGTERM and SIGHUP never mean that: a terminal and systemd send them twice as a matter of course.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from evo_core.process import descendants, stop_signals

_SHOW_CURSOR = "\x1b[?25h"
_JUST_STARTING = 0.1
"""Seconds in which a thread that has begun to start a process has done so."""


class StopSignals:
    """Turns signals into `stop`; `seen` is the first one's number."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.seen: int | None = None
        self._terminals = [number for number in (1, 2) if os.isatty(number)]

    @property
    def exit_status(self) -> int:
        """What a stopped run exits with: 128 and the number of the first signal."""
        return 128 + (self.seen or signal.SIGINT)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if self.seen is not None and number == signal.SIGINT:
            self._end_at_once(number)
        if number == signal.SIGHUP:
            self._forget_terminal()
        self.seen = self.seen or number
        self.stop.set()
        _say("stopping; Ctrl-C again ends everything at once" if number == signal.SIGINT else "stopping")

    def _forget_terminal(self) -> None:
        """Writing to a closed terminal is an error, which must not become that of a step that is saving."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)

    def _end_at_once(self, number: int) -> None:
        """Kill every process of the run and leave.

        Not by an exception: the steps' threads would be waited for. What they leave is as after `kill -9`, which the
        next run clears up. Jobs on Slurm are no processes of ours and go on.
        """
        _kill_descendants()
        _say("ended at once; the next run clears up and carries on", _SHOW_CURSOR if self._terminals else "")
        os._exit(128 + number)


def _say(line: str, before: str = "") -> None:
    """Not by `print`, in the middle of which a signal may come."""
    with suppress(OSError):
        os.write(2, f"{before}evo: {line}\n".encode())


def _kill_descendants() -> None:
    """Stop them all before the first is killed: one that lives could start another meanwhile, and its children would
    be nobody's. So could the steps' threads: they start none from here on, and what one was just starting is waited
    for."""
    sys.addaudithook(_refuse_children)
    for _ in range(20):  # what hangs in a dead file system does not end
        if not (found := _stopped_descendants()):
            return
        _send(found, signal.SIGKILL)


def _refuse_children(event: str, args: tuple[object, ...]) -> None:
    if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"):
        raise RuntimeError("the run ends")


def _stopped_descendants() -> set[int]:
    found: set[int] = set()
    time.sleep(_JUST_STARTING)
    while new := descendants(os.getpid()) - found:
        _send(new, signal.SIGSTOP)
        found |= new
    return found


def _send(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def stop_on_signals() -> Iterator[StopSignals]:
    """Catch the signals for the block. SIGHUP stays ignored where `nohup` said so."""
    caught = StopSignals()
    before = {number: signal.signal(number, caught.handle) for number in stop_signals()}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
