"""Who is making an artifact right now.

A claim saves work, nothing more: correctness comes from the commit. It is a file made by create-if-absent whose
modification time is the owner's heartbeat. An owner on this host is checked by its process; one elsewhere counts as
dead when its heart has not beaten for `STALE_AFTER`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from tasks.store.atomic import create_json, read_json

HEARTBEAT = 5.0
"""Seconds between heartbeats."""
STALE_AFTER = 60.0
"""Seconds without a heartbeat after which an owner on another host counts as dead."""


class Claim:
    """The claim on one key. Use it as a context manager after `acquire` returned it."""

    def __init__(self, path: Path, owner: str) -> None:
        self.path, self.owner = path, owner
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"claim {path.parent.name[:6]}", daemon=True)

    @classmethod
    def acquire(cls, state: Path, run_id: str) -> Claim | None:
        """Take the claim, from a dead owner too; None while a living one holds it."""
        path = state / "claim.json"
        owner = uuid.uuid4().hex
        me = {"owner": owner, "run": run_id, "host": socket.gethostname(), **_process(os.getpid())}
        if create_json(path, me):
            return cls(path, owner)
        if holder(state) is not None:
            return None
        # The owner is dead. Renaming its claim away succeeds for one of several that try.
        aside = path.with_name(f".claim.{owner}.dead")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return None
        aside.unlink(missing_ok=True)
        return cls(path, owner) if create_json(path, me) else None

    @property
    def lost(self) -> bool:
        """Whether somebody else took it (this process was thought dead)."""
        held = read_json(self.path)
        return held is None or held["owner"] != self.owner

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        if not self.lost:
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT):
            if not self.lost:
                try:
                    os.utime(self.path)
                except FileNotFoundError:
                    return


def holder(state: Path) -> dict[str, Any] | None:
    """The living owner of the key's claim, or None."""
    path = state / "claim.json"
    try:
        held, beat = read_json(path), path.stat().st_mtime
    except FileNotFoundError:
        return None
    if held is None:
        return None
    if held["host"] == socket.gethostname():
        return held if _process(held["pid"]) == {"pid": held["pid"], "started": held["started"]} else None
    return held if time.time() - beat < STALE_AFTER else None


def _process(pid: int) -> dict[str, Any]:
    """A process's number and start time (clock ticks since boot): numbers are used again, pairs are not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return {"pid": pid, "started": None if pid == os.getpid() else 0}
    fields = stat.rpartition(")")[2].split()
    if fields[0] == "Z":  # a zombie runs no more
        return {"pid": pid, "started": 0}
    return {"pid": pid, "started": int(fields[19])}
