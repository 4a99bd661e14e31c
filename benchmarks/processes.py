"""Programs that end with all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A program in the repository, for the block: it, and whatever it has started, ends with that.

    Args:
        options: more of `subprocess.Popen`'s.
    """
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options)
    try:
        yield process
    finally:
        end(process)


def run(command: Sequence[str], seconds: float) -> int | None:
    """The status that a program in the repository ends with; None where it took longer, and was ended."""
    with started(command) as process:
        try:
            return process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None


def end(process: subprocess.Popen[Any]) -> None:
    """Kill what is left of a program that was `started`, and of those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def sigterm_is_ctrl_c() -> None:
    """Have SIGTERM end a program in the same order: what it has `started` is no part of its own process group."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
