"""A process's life: tied to its parent's, so that nothing runs on after `kill -9` of what started it, and ended by
signals."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def stop_signals() -> tuple[signal.Signals, ...]:
    """What asks a process to end in order: Ctrl-C, SIGTERM, and a closed terminal (but not under `nohup`)."""
    asked = (signal.SIGINT, signal.SIGTERM)
    return asked if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (*asked, signal.SIGHUP)


def start_time(pid: int) -> int | None:
    """When a process started (clock ticks since boot), which tells it from a later one with its number; None when
    it has ended."""
    try:
        state, started = state_and_start(pid)
    except OSError:
        return None
    return None if state == "Z" else started


def state_and_start(pid: int) -> tuple[str, int]:
    """A process's state letter (Z for one that has ended and was not waited for) and its start time.

    Raises:
        OSError: there is no such process, or /proc does not show it.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[19])


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
