"""A file to read whose place is a number: what its reader adds is how bytes come from there."""

from __future__ import annotations

import io


class Seekable(io.RawIOBase):
    """Keeps the place in a file of known size; `readinto` is left to be written.

    Args:
        size: bytes of the file. A place behind it may be sought, and nothing is read there.
    """

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"negative position {at}")
        self._at = at
        return at
