"""An object as a file to read: it can seek, and goes on where it was when a connection breaks."""

from __future__ import annotations

from typing import Any

from evo_core.storage.s3.place import Place
from evo_core.storage.s3.trouble import request
from evo_core.storage.seekable import Seekable

_FIRST, _MOST = 1 << 20, 64 << 20
"""Bytes asked for at first, and at most: whoever reads on gets twice as many each time, whoever jumps about few."""


def span_of(place: Place, start: int, end: int, tag: str) -> dict[str, str]:
    """What to ask for the bytes from `start` to before `end` of that version of an object; at least one."""
    version = {"IfMatch": f'"{tag}"'} if tag else {}
    return {"Bucket": place.bucket, "Key": place.key, "Range": f"bytes={start}-{end - 1}", **version}


class ObjectStream(Seekable):
    """One version of an object.

    Args:
        place: the object.
        size: its bytes.
        tag: its ETag: another version of it is an error when it is met.
    """

    def __init__(self, place: Place, size: int, tag: str) -> None:
        super().__init__(size)
        self._place, self._tag = place, tag
        self._window = _FIRST
        self._body: Any = None
        self._body_at = self._body_end = 0

    def readinto(self, buffer: Any) -> int:
        """Read at least a byte where there is one.

        Raises:
            OSError: as `evo_core.storage.s3.trouble.request`.
        """
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = request(self._place, lambda client: self._read(client, wanted), failed=self._drop)
        buffer[: len(data)] = data
        self._at += len(data)
        self._body_at = self._at
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, client: Any, wanted: int) -> bytes:
        if self._body is None or self._body_at != self._at or self._at >= self._body_end:
            reads_on = self._body_at == self._at > 0
            self._window = min(2 * self._window, _MOST) if reads_on else _FIRST
            self._drop()
            end = min(self._at + max(self._window, wanted), self._size)
            self._body = self._get(client, self._at, end)
            self._body_at, self._body_end = self._at, end
        data: bytes = self._body.read(min(wanted, self._body_end - self._at))
        if not data:
            raise ConnectionError("the store ended its answer early")
        return data

    def _get(self, client: Any, start: int, end: int) -> Any:
        return client.get_object(**span_of(self._place, start, end, self._tag))["Body"]

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
