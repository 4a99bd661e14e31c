"""Logs on standard output, as they are and as they grow."""

from __future__ import annotations

import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from tasks.launch.follow import LogFollower, size_of

LOOK = 0.3
"""Seconds between looks at a growing log."""
SETTLE = 2.0
"""Seconds for which nothing is made before that is the end: a run is between two steps for a moment."""

Logs = Mapping[str, Path]
"""Log files by the name that a reader is shown."""


class LogPrinter:
    """Prints logs; where there are several, under a line with the name of the one that the lines are of.

    Args:
        conceal: takes secrets out of a line.
    """

    def __init__(self, conceal: Callable[[str], str] = str) -> None:
        self._conceal = conceal
        self._followers: dict[Path, LogFollower] = {}
        self._names: dict[Path, str] = {}
        self._shown: Path | None = None

    def show(self, logs: Logs, lines: int | None, *, rest: bool = True) -> None:
        """Print what is there, or the last `lines` of each."""
        self._begin(logs)
        for path in logs.values():
            if lines is not None:
                last: deque[str] = deque(maxlen=lines)
                counting = LogFollower(path, 0, last.append)
                counting.poll(rest=rest)
                self._followers[path].offset = counting.offset
                for line in last:
                    self._print(path, line)
            self._poll(path, rest=rest)

    def follow(self, logs: Callable[[], Logs], lines: int | None, making: Callable[[], bool]) -> None:
        """Print what is there and what is added, until nothing has been made for a moment or nobody reads.

        Args:
            logs: the files of now: a new attempt has a new one.
            making: whether something may still be added.
        """
        self.show(logs(), lines, rest=False)
        last_made = time.monotonic()
        while not _nobody_reads():
            if making():
                last_made = time.monotonic()
            elif time.monotonic() - last_made > SETTLE:
                break
            time.sleep(LOOK)
            self._look(logs())
        self._look(logs(), rest=True)

    def _look(self, logs: Logs, rest: bool = False) -> None:
        self._begin(logs)
        for path in logs.values():
            self._poll(path, rest)

    def _begin(self, logs: Logs) -> None:
        for name, path in logs.items():
            if path not in self._followers:
                self._names[path] = name
                self._followers[path] = LogFollower(path, 0, self._printer(path))

    def _poll(self, path: Path, rest: bool) -> None:
        follower = self._followers[path]
        if size_of(path) < follower.offset:  # somebody has cut it, and it begins anew
            follower.offset = 0
        try:
            follower.poll(rest=rest)
        except FileNotFoundError:  # moved into the artifact between two looks
            pass
        sys.stdout.flush()

    def _printer(self, path: Path) -> Callable[[str], None]:
        return lambda line: self._print(path, line)

    def _print(self, path: Path, line: str) -> None:
        if len(self._names) > 1 and self._shown != path:
            print(f"{'' if self._shown is None else chr(10)}==> {self._names[path]} <==")
        self._shown = path
        print(self._conceal(line))


def _nobody_reads() -> bool:
    """Whether the other end of standard output is closed: a follower would wait for lines to learn it."""
    try:
        number = sys.stdout.fileno()
        os.fstat(number)
    except (OSError, ValueError, AttributeError):
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
