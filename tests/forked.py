"""Calls in a forked process, for what only a process of its own can do: die, or be short of room."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable

FORK = multiprocessing.get_context("fork")


def in_a_process(call: Callable[[], object]) -> int | None:
    """Call it there; how the process ended: 0, the status it left with, or minus the signal that killed it."""

    def run() -> None:
        call()
        os._exit(0)

    process = FORK.Process(target=run)
    process.start()
    process.join(60)
    return process.exitcode
