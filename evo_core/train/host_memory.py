"""Freed memory that stays with the process, since the next step asks for the same again.

glibc hands large blocks back to the kernel when they are freed, and every step then pays for new pages: to map, to
clear and, on a CPU, to find again. A training process keeps what it has once had, and where the kernel gives huge pages
to those that ask, torch asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_ONE_GIGABYTE, _MOST_OF_OLD_ONES, _NEVER = 2**30, 2**25, 2**31 - 1


def keep_freed_memory() -> None:
    """Have this process and its torch keep freed memory: blocks of up to 1 GB, with an older glibc of up to 32 MB.

    What the environment says comes first. Call it before the first large tensor is made. Without glibc nothing happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # c10/core/impl/alloc_cpu.cpp
    if _says_the_environment("mmap") or _says_the_environment("trim"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        # Older ones take no more than half of their heap; and without either they must be left to find their own way.
        if libc.mallopt(_M_MMAP_THRESHOLD, _ONE_GIGABYTE) or libc.mallopt(_M_MMAP_THRESHOLD, _MOST_OF_OLD_ONES):
            libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def _says_the_environment(threshold: str) -> bool:
    """Whether it sets this threshold of glibc's, by the name of old or the one that superseded it."""
    old, new = f"MALLOC_{threshold.upper()}_THRESHOLD_", f"glibc.malloc.{threshold}_threshold="
    return old in os.environ or new in os.environ.get("GLIBC_TUNABLES", "")
