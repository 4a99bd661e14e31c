"""Files that are written from beginning to end, and files of which parts are read, on disk and in a store.

Both are for what is too large for memory. Errors are `OSError`, which each caller explains in its own terms.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from evo_core.storage.atomic import sync
from evo_core.storage.location import Location, is_remote, path_to_write
from evo_core.storage.s3 import objects, transfer
from evo_core.storage.s3.place import place_of
from evo_core.storage.s3.writer import ObjectWriter


class Sink(Protocol):
    """Takes the bytes of a file."""

    def write(self, data: Any) -> int:
        """Take all of the data; returns how many bytes they are."""
        ...


@contextmanager
def new_file(location: Location, size: int) -> Iterator[Sink]:
    """Write a new file, in a folder that is there; when the block ends well it is durable.

    In a store it is seen only then. On disk it is seen from the beginning, and is removed where the block fails: for
    files that something else vouches for.

    Args:
        size: about how many bytes it will have.

    Raises:
        OSError: it is there already, or cannot be written.
    """
    if is_remote(location):
        writer = ObjectWriter(place_of(str(location)), size)
        try:
            yield writer
            writer.close()
        except BaseException as error:
            writer.abort(asks=not isinstance(error, TimeoutError))
            raise
        return
    path = path_to_write(location)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            yield _DiskWriter(descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


class _DiskWriter:
    """Writes into an open file, all of what it is given: the system takes 2 GiB at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            at += os.write(self._descriptor, view[at:])
        return at


class Ranges(Protocol):
    """A file of which parts are read; threads may read at the same time."""

    size: int

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill the buffer with the bytes from `start` on.

        Raises:
            OSError: they cannot be read, or end before that.
        """
        ...

    def close(self) -> None: ...


def open_ranges(location: Location) -> Ranges:
    """Open a file to read parts of it; in a store they are all of the version that is there now.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    return _ObjectRanges(str(location)) if is_remote(location) else _DiskRanges(path_to_write(location))


class _DiskRanges:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._descriptor).st_size

    def read_into(self, start: int, buffer: memoryview) -> None:
        at = 0
        while at < len(buffer):
            count = os.preadv(self._descriptor, [buffer[at:]], start + at)
            if not count:
                raise OSError(errno.EIO, "ends before its end", str(self._path))
            at += count

    def close(self) -> None:
        os.close(self._descriptor)


class _ObjectRanges:
    def __init__(self, uri: str) -> None:
        self._place = place_of(uri)
        found = objects.info(self._place)
        self.size, self._tag = found.size, found.tag

    def read_into(self, start: int, buffer: memoryview) -> None:
        transfer.read_range(self._place, start, buffer, self._tag)

    def close(self) -> None:
        pass
