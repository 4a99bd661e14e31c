"""Where this machine keeps what can be had again: `$EVO_CACHE`, else `$XDG_CACHE_HOME/evo`, else `~/.cache/evo`."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "EVO_CACHE"


def cache_folder(name: str) -> Path:
    """The part of the cache for things of one kind; it need not be there."""
    base = os.environ.get(VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "evo"
    return Path(base) / name
