"""What a process is doing: the Python stack of each thread, and the collectives of torch that are still open."""

from __future__ import annotations

import json
import sys
import threading
import traceback
from typing import Any


def stack_of(thread: threading.Thread, *, last: int | None = None) -> str:
    """The Python stack of a thread, its newest call last; nothing where it has ended.

    Args:
        last: so many calls of it only.
    """
    frame = sys._current_frames().get(thread.ident or -1)
    return "" if frame is None else "".join(traceback.format_list(traceback.extract_stack(frame)[-(last or 0) :]))


def stacks() -> str:
    """The Python stacks of all threads of this process, the main one first."""
    threads = sorted(threading.enumerate(), key=lambda thread: thread is not threading.main_thread())
    return "\n".join(f"thread {thread.name!r}:\n{stack_of(thread)}" for thread in threads)


def open_collectives() -> list[dict[str, Any]] | None:
    """The collectives that this rank began and that have not ended, from torch's flight recorder.

    Returns:
        Each with its kind (``profiling_name``), group, sequence number and sizes; None where torch has no recorder.
    """
    from torch._C import _distributed_c10d as c10d

    dump = getattr(c10d, "_dump_fr_trace_json", None) or getattr(c10d, "_dump_nccl_trace_json", None)
    if dump is None:
        return None
    record = json.loads(dump(includeCollectives=True, onlyActive=False))
    return [entry for entry in record.get("entries", []) if not entry.get("retired") and entry["state"] != "completed"]
