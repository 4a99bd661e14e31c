"""Calls in a forked process, for what only a process of its own can do: die, or be short of room."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable

from evo_core.process import keep_inherited, own_garbage

FORK = multiprocessing.get_context("fork")


def in_a_process(call: Callable[[], object]) -> int | None:
    """Call it there; how the process ended: 0, the status it left with, or minus the signal that killed it."""

    def run() -> None:
        keep_inherited()
        call()
        os._exit(0)

    process = FORK.Process(target=run)
    with own_garbage():  # a process group that an earlier test left may be among this process's
        process.start()
    process.join(60)
    return process.exitcode
