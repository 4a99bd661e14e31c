"""The watchdog: a run in which no rank makes progress for too long writes down what it is doing, and ends.

A rank that hangs (stopped, in a driver, in a message that never comes) leaves all others waiting in a collective, and
nothing would ever end them but a person. So each rank looks from a thread, and where nobody got on for the limit it
leaves its stacks and its open collectives, tells people, and ends with a status of its own: to whoever launched it a
crash, to be started again from the newest checkpoint.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from evo_core import pulse
from evo_core.job import STUCK, leave_error
from evo_core.monitor.job_progress import JobProgress
from evo_core.monitor.last_words import silent_ranks, write_last_words
from evo_core.monitor.stacks import stack_of

_LOOKS = 20
"""Looks within a limit, as long as they are not more than `_LONGEST_PERIOD` apart."""

_LONGEST_PERIOD = 15.0

_WRITING = 5.0
"""Seconds that a rank may take to write: the disk may be what hangs."""

_TELLING = 12.0
"""Seconds that a rank may take to tell people: an address may be what hangs."""

_LOOK = 0.05
_CALLS = 4
"""Innermost calls of a stack that are told; the files have all."""

_NAMED = 8
"""Ranks that are named one by one."""


class Stuck(RuntimeError):
    """No rank made progress for too long."""


class Watchdog:
    """Watches the process, and the thread that makes it, from then on until it is closed.

    What it measures is time in which it could look: where the whole machine, or the job, was suspended, that time does
    not count.

    Args:
        first: seconds without progress of any rank after which the process is ended, until `started`; None waits.
        after: the same from then on.
        store: a connection to the ranks' store that nobody else uses; None for a process alone.
        rank: this one.
        world_size: all.
        tell: is handed what is to be told to people before the end, and returns when that is done.
    """

    def __init__(
        self,
        first: float | None,
        after: float | None,
        *,
        store: dist.Store | None,
        rank: int,
        world_size: int,
        tell: Callable[[str], None],
    ) -> None:
        self._limit, self._after, self._tell = first, after, tell
        self._setting = "monitor.start_timeout"
        self._rank, self._world_size = rank, world_size
        self._folder: Path | None = None
        self._hosts: tuple[str, ...] = ()
        self._done = threading.Event()
        self._watched = threading.current_thread()
        self._thread: threading.Thread | None = None
        if first is not None or after is not None:
            self._period = min(_LONGEST_PERIOD, *(limit / _LOOKS for limit in (first, after) if limit is not None))
            self._others = JobProgress(store, self._period, pulse.beats)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def keep_in(self, folder: Path, hosts: Sequence[str]) -> None:
        """Where to leave stacks; until then they are printed alone.

        Args:
            folder: for this attempt alone (`last_words.folder_of`).
            hosts: the machine of each rank.
        """
        self._folder, self._hosts = folder, tuple(hosts)

    def started(self) -> None:
        """The first step is done."""
        pulse.beat()
        self._limit, self._setting = self._after, "monitor.stuck_after"

    def close(self) -> None:
        """Watch no more."""
        self._done.set()
        if self._thread is not None:
            self._others.close()
            self._thread.join()

    def _watch(self) -> None:
        seen, idle, looked = self._progress(), 0.0, time.monotonic()
        while not self._done.wait(self._period):
            before, looked = looked, time.monotonic()
            idle += min(looked - before, 2 * self._period)
            if (now := self._progress()) != seen:
                seen, idle = now, 0.0
            if self._limit is not None and idle >= self._limit:
                self._end(idle)

    def _progress(self) -> object:
        return pulse.beats(), self._others.seen(), self._limit

    def _end(self, idle: float) -> None:
        """Leave word and end this process, whatever comes of the words."""
        try:
            self._leave_word(idle)
        finally:
            os._exit(STUCK)

    def _leave_word(self, idle: float) -> None:
        what = f"no rank made progress for {idle:.0f} s ({self._setting} is {self._limit:.0f} s)"
        at = stack_of(self._watched, last=_CALLS)
        # What hangs may be a write to a pipe that nobody reads.
        _within(_WRITING, lambda: _print(f"watchdog: rank {self._rank}: {what}; it is at\n{at}"))
        silent = self._write(what)
        words = f"{what}{self._named(silent)}; rank {self._rank} is at\n{at}"
        _within(_WRITING, lambda: leave_error(Stuck(words)))
        _within(_TELLING, lambda: self._tell(words))

    def _write(self, what: str) -> list[int]:
        """Write stacks, and wait until every rank that lives has; returns the others, as far as is known."""
        folder = self._folder
        if folder is None:
            return []
        _within(_WRITING, lambda: write_last_words(folder, self._rank, what))
        # They look at other moments, and may have heard later of the last progress that there was.
        silent: list[int] = []

        def wait_for_others() -> None:
            until = time.monotonic() + 2 * self._period + _WRITING
            while time.monotonic() < until:
                silent[:] = silent_ranks(folder, self._world_size)
                if not silent:
                    return
                time.sleep(_LOOK)

        _within(2 * self._period + 2 * _WRITING, wait_for_others)
        return silent

    def _named(self, silent: Sequence[int]) -> str:
        if not silent or len(silent) >= self._world_size:
            return ""
        named = ", ".join(f"{rank} on {self._hosts[rank]}" for rank in silent[:_NAMED])
        more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
        return f"; no stacks came from rank {named}{more}: look there first (the others' are in {self._folder})"


def _print(words: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads it, or it is closed
        print(words, file=sys.stderr, flush=True)


def _within(seconds: float, do: Callable[[], object]) -> None:
    """Do something in a thread and wait so long at most; what goes wrong with it is printed."""
    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(seconds)
