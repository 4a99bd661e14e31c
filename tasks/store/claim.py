"""Who is making an artifact right now.

A claim saves work, nothing more: correctness comes from the commit. It is a file made by create-if-absent whose
modification time is the owner's heartbeat. The claim of a dead owner is not replaced but followed: whoever first
creates ``claim-after-OWNER.json``, a name that only this one dead owner has, is the next. So of several that see the
same owner dead one succeeds, and one that looked too long ago can take nothing from the owner of today.

Whether an owner lives its process tells, where it counts in this machine's boot and this PID namespace. Elsewhere the
heartbeat tells, measured on the file system's clock alone; a heart that seems to have stopped is looked at again before
its claim is taken, since a file system may carry its clients' clocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evo_core.storage.atomic import time_of
from evo_core.storage.identity import alive, record_of
from tasks.store.json_file import create_json

CLAIM = "claim.json"
HEARTBEAT = 5.0
"""Seconds between heartbeats."""
STALE_AFTER = 60.0
"""Seconds without a heartbeat after which an owner whose process cannot be seen counts as dead."""
SECOND_LOOK = 2
"""Heartbeats that a silent claim is watched for before it is taken."""


class Claim:
    """The claim on one key. Use it as a context manager after `acquire` returned it."""

    def __init__(self, path: Path, owner: str) -> None:
        self.path, self.owner = path, owner
        self._state = path.parent
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"claim {self._state.name[:6]}", daemon=True)

    @classmethod
    def acquire(cls, state: Path, run_id: str, *, stop: threading.Event | None = None) -> Claim | None:
        """Take the claim, from a dead owner too; None while a living one holds it.

        Args:
            stop: ends the second look at an owner elsewhere whose heart seems to have stopped.
        """
        line = _line(state)
        if line:
            before = line[-1]
            verdict = _verdict(before)
            if verdict == "living" or (verdict == "silent" and not _still_silent(before, stop or threading.Event())):
                return None
        path = state / (_after(line[-1]) if line else CLAIM)
        owner = uuid.uuid4().hex
        if not create_json(path, {"owner": owner, "run": run_id, **record_of(os.getpid())}):
            return None
        line = _line(state)
        if not line or line[-1].token != owner:  # the claim that this one follows was given up in the meantime
            path.unlink(missing_ok=True)
            return None
        for path_left in {*state.glob("claim-after-*.json")} - {held.path for held in line}:
            path_left.unlink(missing_ok=True)  # of lines that have ended
        return cls(path, owner)

    @property
    def lost(self) -> bool:
        """Whether somebody else took it (this process was thought dead)."""
        line = _line(self._state)
        return not line or line[-1].token != self.owner

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        line = _line(self._state)
        if line and line[-1].token == self.owner:
            for held in line:  # the first of the line before those that follow it: without it they say nothing
                with contextlib.suppress(OSError):
                    held.path.unlink()

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # a file system that is away for a moment
                if not self.lost:
                    os.utime(self.path)


def holder(state: Path) -> dict[str, Any] | None:
    """The record of the key's living owner ("run", "host", "pid", ...), or None."""
    line = _line(state)
    if not line or _verdict(line[-1]) != "living":
        return None
    return {"run": "?", "host": "?", "pid": "?", **line[-1].record}


def last_owner(state: Path) -> dict[str, Any] | None:
    """The record of whoever holds the key's claim, dead or alive; None where nobody does."""
    line = _line(state)
    return line[-1].record if line else None


def known_dead(state: Path) -> bool:
    """Whether there is a claim whose owner's process is known to have ended."""
    line = _line(state)
    return bool(line) and _verdict(line[-1]) == "dead"


@dataclass(frozen=True)
class _Held:
    """A claim's file as it was read.

    Attributes:
        token: what the claim after this one is named by.
        record: empty where the file is damaged: no process finds itself in it.
        beat: its modification time, ns of the file system's clock.
    """

    path: Path
    token: str
    record: dict[str, Any]
    beat: int


def _read(path: Path) -> _Held | None:
    record: Any = None
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            record = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
    owner = record.get("owner") if isinstance(record, dict) else None
    if isinstance(owner, str) and owner.isalnum() and len(owner) <= 64:
        return _Held(path, owner, record, stat.st_mtime_ns)
    return _Held(path, f"{stat.st_ino:x}x{stat.st_mtime_ns:x}", {}, stat.st_mtime_ns)


def _line(state: Path) -> list[_Held]:
    """The claims that follow each other; the last one is the key's."""
    line: list[_Held] = []
    held = _read(state / CLAIM)
    while held is not None and all(held.token != before.token for before in line):  # a damaged one may follow itself
        line.append(held)
        held = _read(state / _after(held))
    return line


def _after(held: _Held) -> str:
    return f"claim-after-{held.token}.json"


def _verdict(held: _Held) -> Literal["living", "dead", "silent"]:
    if not held.record:
        return "dead"
    lives = alive(held.record)
    if lives is not None:
        return "living" if lives else "dead"
    age = (time_of(held.path.parent) - held.beat) / 1e9
    if age < 0:
        age = _watched_for(held)
    return "living" if age < STALE_AFTER else "silent"


def _still_silent(held: _Held, stop: threading.Event) -> bool:
    if stop.wait(SECOND_LOOK * HEARTBEAT):
        return False
    again = _read(held.path)
    return again is not None and (again.token, again.beat) == (held.token, held.beat)


_watched: dict[Path, tuple[str, int, float]] = {}
"""Of claims that were last beaten in the future (a clock was set back): owner and beat, and since when they are so."""


def _watched_for(held: _Held) -> float:
    """Seconds, by this process's own clock, for which a claim was seen as it is."""
    seen = _watched.get(held.path)
    if seen is None or seen[:2] != (held.token, held.beat):
        seen = _watched[held.path] = (held.token, held.beat, time.monotonic())
    return time.monotonic() - seen[2]
