"""The lines of a raw file, numbered, with a limit on their length; of the whole file or of a range of its bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from evo_core.data.raw.bytes import chunks
from evo_core.storage.location import Location

BOM = b"\xef\xbb\xbf"

ByteRange = tuple[int, int]
"""First byte, and the byte behind the last. A line belongs to the range that it starts in."""


class Line(NamedTuple):
    """A line: its number from 1 (in a range: counted from the range's first), and its bytes with ``\\n`` at the end,
    whatever the file ends its lines with. No bytes (None) where it is longer than the limit.
    """

    number: int
    content: bytes | None


def lines(
    location: Location,
    *,
    limit: int,
    byte_range: ByteRange | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[Line]:
    """The lines of a file; memory for one of them and a chunk of the file.

    Args:
        limit: bytes of the longest line that is given.
        byte_range: of a plain file (not of an archive); ranges that touch give each line once.
        on_bytes: as `chunks` has it.

    Raises:
        DataError: the file cannot be read.
    """
    start, end = byte_range or (0, None)
    at, number = start, 0
    # A range that begins inside a line leaves that line to the range before it.
    found = _split(chunks(location, start=max(start - 1, 0), on_bytes=on_bytes), limit)
    if start:
        _, size = next(found, (None, 1))
        at += size - 1
    for content, size in found:
        if end is not None and at >= end:
            return
        at += size
        # Returns end a line as well, as in Python's text files, which InternEvo's tool reads through.
        for line in [None] if content is None else _split_at_returns(content):
            number += 1
            if line is not None and number == 1 and not start:
                line = line.removeprefix(BOM)
            yield Line(number, line)


def lines_before(location: Location, start: int, *, limit: int) -> int:
    """How many lines a file has before the range that begins at `start`."""
    return sum(1 for _ in lines(location, limit=limit, byte_range=(0, start)))


def _split(parts: Iterator[bytes], limit: int) -> Iterator[tuple[bytes | None, int]]:
    """(line with its newline, bytes of it); of a line that is too long only the size. The last may have no newline."""
    begun: list[bytes] = []
    size = 0
    for part in parts:
        head, newline, tail = part.rpartition(b"\n")
        if newline:
            first, *others = head.split(b"\n")
            size += len(first) + 1
            yield (None if size > limit else b"".join([*begun, first, b"\n"])), size
            for line in others:
                yield (None if len(line) >= limit else line + b"\n"), len(line) + 1
            begun, size = [], 0
        size += len(tail)
        if size > limit:
            begun = []  # it is not given: nothing of it needs to be kept
        else:
            begun.append(tail)
    if size:
        yield (None if size > limit else b"".join(begun)), size


def _split_at_returns(line: bytes) -> list[bytes]:
    if b"\r" not in line:
        return [line]
    return line.replace(b"\r\n", b"\n").replace(b"\r", b"\n").splitlines(keepends=True)
