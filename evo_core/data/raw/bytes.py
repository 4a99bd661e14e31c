"""The bytes of a raw file, unpacked while they are read: plain, ``.gz`` or ``.zst``, on disk or in an object store."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from evo_core.errors import DataError
from evo_core.storage.files import open_file, read_error
from evo_core.storage.location import Location, file_name

COMPRESSIONS = (".gz", ".zst")
CHUNK = 1 << 20

_PACKED = 16 << 10
"""Bytes of a .zst unpacked at a time: they may become ten thousand times as many."""

_WINDOW = 1 << 31
"""The longest there is, ``zstd --long=31``: it is the memory that unpacking takes, of files that ask for it."""


def compression(location: Location) -> str:
    """``.gz``, ``.zst`` or nothing, from a file's name."""
    name = file_name(location).lower()
    return next((ending for ending in COMPRESSIONS if name.endswith(ending)), "")


def chunks(location: Location, *, start: int = 0, on_bytes: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """The file's bytes, unpacked, a mebibyte or so at a time.

    Args:
        start: where to begin; of plain files only.
        on_bytes: called before each piece is given, with the bytes of the file that were read for it (still packed).

    Raises:
        DataError: it is not there or not readable, or the archive is broken or ends early.
    """
    with open_file(location) as file:
        try:
            file.seek(start)
            at = start
            for chunk in _unpacked(file, location):
                if on_bytes is not None:
                    at, before = file.tell(), at
                    on_bytes(at - before)
                yield chunk
        except EOFError:
            raise DataError("the archive is cut off", file=location) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"not a readable .gz archive ({error})", file=location) from None
        except OSError as error:
            raise read_error(location, error) from error


def _unpacked(file: BinaryIO, location: Location) -> Iterator[bytes]:
    kind = compression(location)
    if kind == ".zst":
        yield from _zstd_chunks(file, location)
    elif kind == ".gz":
        with gzip.GzipFile(fileobj=file) as unpacked:
            while chunk := unpacked.read(CHUNK):
                yield chunk
    else:
        while chunk := file.read(CHUNK):
            yield chunk


def _zstd_chunks(file: BinaryIO, location: Location) -> Iterator[bytes]:
    import zstandard

    # Frame by frame, since the library's own file object takes a file that is cut off for a complete one.
    frame = None
    while data := file.read(min(CHUNK, _PACKED)):
        while data:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
            try:
                yield frame.decompress(data)
            except zstandard.ZstdError as error:
                raise DataError(f"not a readable .zst archive ({error})", file=location) from None
            data = b""
            if frame.eof:
                data, frame = frame.unused_data, None
    if frame is not None:
        raise DataError("the archive is cut off", file=location)
