"""Processes of this machine: what /proc says of them, a life tied to the parent's, the signals that end one.

The standard library alone, and little of it: `tasks.launch.supervisor` loads this in a bare interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1


class Status(NamedTuple):
    """What /proc says of a process: state letter (Z has ended), parent, start in clock ticks since boot."""

    state: str
    parent: int
    started: int


def status(pid: int) -> Status:
    """What there is to know of a process.

    Raises:
        OSError: there is none, or /proc does not show it.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a program's name may hold anything
    return Status(fields[0], int(fields[1]), int(fields[19]))


def start_time(pid: int) -> int | None:
    """When a process started (clock ticks since boot), which tells it from a later one with its number; None when
    it has ended."""
    try:
        found = status(pid)
    except OSError:
        return None
    return None if found.state == "Z" else found.started


def descendants(ancestor: int) -> set[int]:
    """Processes below one, at any depth; ended ones that nobody has waited for do not count."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found = status(int(entry.name))
            if found.state != "Z":
                children.setdefault(found.parent, []).append(int(entry.name))
    below: set[int] = set()
    waiting = [ancestor]
    while waiting:
        for pid in children.get(waiting.pop(), []):
            below.add(pid)
            waiting.append(pid)
    return below


def stop_signals() -> tuple[signal.Signals, ...]:
    """What asks a process to end in order: Ctrl-C, SIGTERM, and a closed terminal (but not under `nohup`)."""
    asked = (signal.SIGINT, signal.SIGTERM)
    return asked if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (*asked, signal.SIGHUP)


@contextlib.contextmanager
def own_garbage() -> Iterator[None]:
    """Fork children that collect nothing of this process's; each calls `keep_inherited` first.

    A process group that was left as garbage (by a run that failed) joins its threads when it is collected. A child of a
    fork does not have those threads, and would wait for ever.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def keep_inherited() -> None:
    """In a child forked under `own_garbage`: from here on collect what is made here, and look at nothing else."""
    gc.freeze()
    gc.enable()


def die_with_launcher() -> None:
    """Have this process end with what started its ranks: a pipeline's launcher, or torchrun's agent on this node.

    Slurm ends the tasks of a step by itself, and what a person started without a launcher may outlive its shell.
    """
    if os.environ.get("EVO_DIE_WITH_PARENT") == "1" or "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux; elsewhere nothing happens)."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died between the two calls
        os.kill(os.getpid(), signal.SIGKILL)
