"""Forked processes, for what only a process of its own can do: die, hold a lock, or be short of room."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import sys
from collections.abc import Callable
from pathlib import Path

from evo_core.process import keep_inherited, own_garbage


class ForkedProcess(multiprocessing.context.ForkProcess):
    """One that looks at nothing tests before it left: garbage of theirs may join, or free, what only they had.

    It does not leave by Python's own way out either, which waits for threads that are not here.
    """

    def start(self) -> None:
        with own_garbage():
            super().start()

    def run(self) -> None:
        keep_inherited()
        super().run()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _Context(multiprocessing.context.ForkContext):
    Process = ForkedProcess  # type: ignore[assignment]


FORK = _Context()


def in_a_process(call: Callable[[], object]) -> int | None:
    """Call it there; how the process ended: 0, the status it left with, or minus the signal that killed it."""
    process = FORK.Process(target=call)
    process.start()
    process.join(60)
    return process.exitcode


def in_a_process_of_nobody(folder: Path, call: Callable[[], object]) -> int | None:
    """The same as a user who may write nothing of ours; as ourselves where we are not root.

    Args:
        folder: a test's own, which it may enter.
    """

    def as_nobody() -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        call()

    for parent in [folder, *folder.parents]:
        if not parent.stat().st_mode & 0o001:  # pytest's own, which nobody else may enter
            parent.chmod(0o755)
    return in_a_process(as_nobody)
