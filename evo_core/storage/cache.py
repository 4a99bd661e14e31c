"""Where this machine keeps what can be had again: `$EVO_CACHE`, else `$XDG_CACHE_HOME/evo`, else `~/.cache/evo`."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

VARIABLE = "EVO_CACHE"


def cache_folder(name: str) -> Path:
    """The part of the cache for things of one kind; it need not be there."""
    base = os.environ.get(VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "evo"
    return Path(base) / name


def mark_in_use(path: Path) -> None:
    """Let what clears the cache by age know that this is still used.

    Where that may not be written (another user's cache, or one mounted read-only) it is its owner's to clear.
    """
    with contextlib.suppress(OSError):
        os.utime(path)
