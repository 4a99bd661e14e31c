"""Which process a record or a file's name means, and whether it still lives.

A process number says little by itself: it is used again, and two containers that share a host name (or a machine
before and after a reboot) count their processes separately. So a record of a process holds the boot and the PID
namespace in which its number counts, and the time it started.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from evo_core.process import start_time, status


def record_of(pid: int) -> dict[str, Any]:
    """The record of this process or of a child.

    {"host", "pid", "started", "boot", "pid_namespace"}, the last three None where the system does not tell.
    """
    boot, namespace = _counted_in()
    started = start_time(pid) if boot else None
    return {"host": socket.gethostname(), "pid": pid, "started": started, "boot": boot, "pid_namespace": namespace}


def alive(record: Mapping[str, Any]) -> bool | None:
    """Whether the process of a record lives; None where that cannot be told from here.

    Args:
        record: what `record_of` gave there. One of an older form has no boot: there the host alone counts.
    """
    pid, started = record.get("pid"), record.get("started")
    if type(pid) is not int or type(started) is not int or pid <= 0 or not _counts_here(record):
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    try:
        found = status(pid)
    except OSError:
        return None  # a /proc that hides the processes of others
    return found.state != "Z" and found.started == started  # a zombie runs no more


def mark() -> str:
    """This process as part of a file's name: ``<pid>-<start time>-<8 hex digits of where these count>``."""
    return _mark(os.getpid())


def left_by_dead(mark: str) -> bool | None:
    """Whether the process that `mark` gave this in has ended; None where that cannot be told from here."""
    pid, started, counted_in = mark.split("-")
    boot, namespace = _counted_in()
    if not boot or counted_in != _digest(boot, namespace):
        return None
    lives = alive({"pid": int(pid), "started": int(started), "boot": boot, "pid_namespace": namespace})
    return None if lives is None else not lives


@lru_cache(maxsize=1)
def _mark(pid: int) -> str:
    boot, namespace = _counted_in()
    return f"{pid}-{start_time(pid) or 0}-{_digest(boot, namespace)}"


def _digest(boot: str | None, namespace: str | None) -> str:
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:8]


def _counts_here(record: Mapping[str, Any]) -> bool:
    if "boot" not in record:
        return record.get("host") == socket.gethostname()
    boot, namespace = _counted_in()
    return boot is not None and (boot, namespace) == (record["boot"], record.get("pid_namespace"))


def _counted_in() -> tuple[str | None, str | None]:
    """Where this process's number counts: the boot and the PID namespace. None where /proc shows other processes than
    those that this one can name (``unshare --pid`` without ``--mount-proc``) or is not there."""
    try:
        if Path("/proc/self").readlink().name != str(os.getpid()):
            return None, None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (no path: pid:[4026531836])
    except OSError:
        return None, None
