"""Updated parameters on their way: from the rank that updates a share to all that compute with it, a buffer at a time.

The columns of all buckets are cut into chunks, in the order in which a forward pass reads the parameters that lie in
them. Each chunk is gathered into one buffer and copied from there to where the parameters are; then the next one is
sent for. So the parameters are in memory once, and with `overlap` a chunk is under way while the modules compute that
need those before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evo_core.optim.bucket import Bucket
from evo_core.optim.slots import Slot
from evo_core.parallel.collectives import Pending, all_gather


class Chunk(NamedTuple):
    """Columns `start` to `stop` of a bucket, and the slots that have some of them."""

    bucket: Bucket
    start: int
    stop: int
    slots: tuple[Slot, ...]


class Event(NamedTuple):
    """Something that happened to a chunk.

    Attributes:
        what: gather (the message was sent), or arrive (its values are in the parameters).
        parameters: names of those that have columns in the chunk.
    """

    what: str
    parameters: tuple[str, ...]


class Publishing:
    """The way of updated master values into parameters.

    Args:
        buckets: of all parameters.
        order: the place of a parameter in a forward pass, by name.
        size: elements that are gathered at once, at most; at least one from each rank.

    Attributes:
        launched, taken: how many chunks of the last update have been sent for, and have arrived.
    """

    def __init__(self, buckets: Iterable[Bucket], order: Mapping[str, int], size: int) -> None:
        every = list(buckets)
        self._own = [bucket for bucket in every if bucket.zero.size == 1]
        chunks = [chunk for bucket in every if bucket.zero.size > 1 for chunk in _chunks(bucket, size)]
        chunks.sort(key=lambda chunk: min(order.get(slot.name, 0) for slot in chunk.slots))
        self.chunks: Sequence[Chunk] = chunks
        self._last = {id(slot.param): number for number, chunk in enumerate(chunks) for slot in chunk.slots}
        self._buffers: dict[torch.dtype, Tensor] = {}
        self._work: Pending | None = None
        self._events: list[Event] | None = None
        self.launched = self.taken = len(chunks)

    @property
    def needed(self) -> int:
        """Bytes of the buffers once an update has made them."""
        return sum(self._longest(dtype) * dtype.itemsize for dtype in {chunk.bucket.dtype for chunk in self.chunks})

    @property
    def nbytes(self) -> int:
        """Of the buffers: one for each type that parameters have, as long as the longest chunk of it."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    @contextmanager
    def recording(self) -> Iterator[list[Event]]:
        """Note in a list what happens in the block, as tests do."""
        events: list[Event] = []
        self._events = events
        try:
            yield events
        finally:
            self._events = None

    @torch.no_grad()
    def start(self) -> None:
        """Send the first of the values that an update has made."""
        for bucket in self._own:
            bucket.write_parameters()
        self.launched = self.taken = 0
        self._launch()

    def wait_for(self, parameters: Iterable[nn.Parameter]) -> None:
        """Wait until some parameters are updated, and those before them; every rank must ask alike."""
        if self.taken == len(self.chunks):
            return
        last = max((self._last.get(id(parameter), -1) for parameter in parameters), default=-1)
        while self.taken <= last:
            self._take()

    def finish(self) -> None:
        """Wait until all are."""
        while self.taken < len(self.chunks):
            self._take()

    def _launch(self) -> None:
        if self.launched == len(self.chunks):
            return
        bucket, start, stop, _ = self.chunks[self.launched]
        row = bucket.master[start:stop].to(bucket.dtype)
        self._work = all_gather(self._room(bucket, stop - start).view(-1), row, bucket.zero.group)
        self._note("gather", self.chunks[self.launched])
        self.launched += 1

    @torch.no_grad()
    def _take(self) -> None:
        bucket, start, stop, slots = self.chunks[self.taken]
        assert self._work is not None  # it was launched when the one before it was taken
        self._work.wait()
        self._work = None  # it holds what was sent
        values = self._room(bucket, stop - start)
        for slot in slots:
            slot.take(values, start)
        self._note("arrive", self.chunks[self.taken])
        self.taken += 1
        self._launch()

    def _note(self, what: str, chunk: Chunk) -> None:
        if self._events is not None:
            self._events.append(Event(what, tuple(slot.name for slot in chunk.slots)))

    def _room(self, bucket: Bucket, columns: int) -> Tensor:
        """[Z, columns] of the buffer."""
        needed = bucket.zero.size * columns
        if bucket.dtype not in self._buffers:
            longest = self._longest(bucket.dtype)
            self._buffers[bucket.dtype] = torch.empty(longest, dtype=bucket.dtype, device=bucket.device)
        return self._buffers[bucket.dtype][:needed].view(-1, columns)

    def _longest(self, dtype: torch.dtype) -> int:
        """Elements of the longest chunk of a type."""
        return max(c.bucket.zero.size * (c.stop - c.start) for c in self.chunks if c.bucket.dtype == dtype)


def _chunks(bucket: Bucket, size: int) -> Iterator[Chunk]:
    """A bucket's columns, the last ones first: its parameters lie there from the last one of the model to the first."""
    columns, stop = max(size // bucket.zero.size, 1), bucket.width
    while stop > 0:
        start = max(stop - columns, 0)
        slots = tuple(slot for slot in bucket.slots if slot.start < stop and start < slot.start + slot.width)
        yield Chunk(bucket, start, stop, tuple(slot for slot in slots if slot.width))
        stop = start
