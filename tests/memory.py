"""How much memory this process takes in a block, as the kernel counts it: torch's own counters know nothing of the
host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SELF = Path("/proc/self")


@dataclass
class Grown:
    """Bytes by which the process's resident memory grew.

    Attributes:
        peak: at most, since the block began.
        left: at its end.
    """

    peak: int = 0
    left: int = 0


@contextmanager
def growing() -> Iterator[Grown]:
    """Say of a block how resident memory grows in it; valid after it."""
    before, grown = _resident("VmRSS"), Grown()
    (_SELF / "clear_refs").write_text("5")  # forget the peak so far
    yield grown
    grown.peak, grown.left = _resident("VmHWM") - before, _resident("VmRSS") - before


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (_SELF / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024
