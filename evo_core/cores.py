"""How many cores there are to work on."""

from __future__ import annotations

import os


def cores() -> int:
    """The cores that this process may use: those of its Slurm step or container, where the system can tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
