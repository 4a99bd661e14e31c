"""What a listing says of one file, and why it passes others over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

HIDDEN, AGAIN, DANGLING = "hidden", "linked again", "linked to nothing"
UNREADABLE, SPECIAL = "unreadable", "no regular file"

LeaveOut = Callable[[str, str], None]
"""Called with (reason, path below the folder) of each file, and of each folder once, that a listing passes over."""


@dataclass(frozen=True)
class Listed:
    """One file.

    Attributes:
        path: relative to the folder, with forward slashes.
        uri: a path, or a URI.
        size: bytes.
        modified: seconds since 1970.
        mtime_ns: the same of a local file, as the file system says it; else 0.
        tag: what an object store says of the content (its ETag); empty for a local file.
    """

    path: str
    uri: str
    size: int
    modified: float
    mtime_ns: int = 0
    tag: str = ""
