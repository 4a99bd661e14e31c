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
_ONE_GIGABYTE, _NEVER = 2**30, 2**31 - 1


def keep_freed_memory() -> None:
    """Have this process and its torch keep freed memory up to blocks of 1 GB; what the environment says comes first.

    Call it before the first large tensor is made. Where there is no glibc nothing happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # c10/core/impl/alloc_cpu.cpp
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _ONE_GIGABYTE)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
