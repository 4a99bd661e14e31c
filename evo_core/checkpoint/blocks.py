"""Files of tensors that are read by block, each compared with its digest before anything of it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType

from evo_core.checkpoint.records import BLOCK, FileRecord, block_digest
from evo_core.errors import DamagedError
from evo_core.storage.location import Location, is_remote
from evo_core.storage.s3.client import THREADS
from evo_core.storage.streams import open_ranges

Span = tuple[int, int]
"""Where bytes of a file begin, and how many they are."""

_AHEAD = 1
"""Blocks that are read from a disk while the one before is being used."""


class BlockReader:
    """Reads spans of a file, in the order in which they lie, the next blocks ahead; a context manager.

    Of the file there are as many blocks in memory as are read ahead, and one, and a span that lies in several; each
    block is read once, though two spans lie in it. Their memory is used again: asking the system for more of it, page
    by page, takes as long as reading.

    Args:
        file: it.
        record: what the manifest says of it; None reads without comparing.
        spans: those that will be read, in this order; each begins where or after the one before does.

    Raises:
        OSError: the file cannot be read.
        DamagedError: it has another size than it was written with.
    """

    def __init__(self, file: Location, record: FileRecord | None, spans: Sequence[Span]) -> None:
        self._file = file
        self._digests = record.blocks if record is not None else ()
        self._ranges = open_ranges(file)
        if record is not None and self._ranges.size != record.size:
            self._ranges.close()
            raise DamagedError(f"damaged: has {self._ranges.size} bytes instead of {record.size}", file=file)
        self._ahead = THREADS if is_remote(file) else _AHEAD
        self._pool = ThreadPoolExecutor(self._ahead, thread_name_prefix="blocks")
        self._wanted = iter(_blocks_of(spans))
        self._coming: list[tuple[int, Future[memoryview]]] = []
        self._number, self._block = -1, memoryview(b"")
        self._free: list[bytearray] = []
        self._span = bytearray()

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._ranges.close()

    def read(self, start: int, length: int) -> memoryview:
        """The next span; valid until the one after it is read.

        Raises:
            OSError: it cannot be read.
            DamagedError: it is not what was written.
        """
        number, within = divmod(start, BLOCK)
        if within + length <= BLOCK:
            return self._part(number, within, length, start + length)
        if len(self._span) < length:
            self._span = bytearray(length)
        at = 0
        while at < length:
            number, within = divmod(start + at, BLOCK)
            part = self._part(number, within, min(length - at, BLOCK - within), start + length)
            self._span[at : at + len(part)] = part
            at += len(part)
        return memoryview(self._span)[:length]

    def _part(self, number: int, within: int, length: int, end: int) -> memoryview:
        part = self._get(number)[within : within + length]
        if len(part) < length:
            raise DamagedError(f"ends before byte {end}", file=self._file)
        return part

    def _get(self, number: int) -> memoryview:
        while self._number != number:
            missing = self._ahead + 1 - len(self._coming)
            for following in islice(self._wanted, missing):
                self._coming.append((following, self._pool.submit(self._read, following)))
            if isinstance(used := self._block.obj, bytearray):
                self._free.append(used)
            self._number, future = self._coming.pop(0)
            self._block = future.result()
        return self._block

    def _read(self, number: int) -> memoryview:
        start = number * BLOCK
        try:
            memory = self._free.pop()
        except IndexError:
            memory = bytearray(min(BLOCK, self._ranges.size))
        block = memoryview(memory)[: self._ranges.size - start]
        self._ranges.read_into(start, block)
        if self._digests and block_digest(block) != self._digests[number]:
            end = start + len(block)
            message = f"damaged: bytes {start} to {end} do not have the digest they were written with"
            raise DamagedError(message, file=self._file)
        return block


def _blocks_of(spans: Sequence[Span]) -> Iterator[int]:
    """The blocks in which the spans lie, each once."""
    last = -1
    for start, length in spans:
        for number in range(max(start // BLOCK, last + 1), -(-(start + length) // BLOCK)):
            yield number
            last = number
