"""Updated parameters on their way: from the rank that updates a share to all that compute with it, a buffer at a time.

The columns of all buckets are cut into chunks, in the order in which a forward pass reads the parameters that lie in
them. Each chunk is gathered into one buffer and copied from there to where the parameters are; then the next one is
sent for. So the parameters are in memory once, and with `overlap` a chunk is under way while the modules compute that
need those before it.

Of a bucket of which ranks own unlike shares a chunk is of one parameter, and comes from its owner alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evo_core.optim.bucket import Bucket
from evo_core.optim.slots import Slot, WholeSlot
from evo_core.parallel.collectives import Pending, all_gather, broadcast


class Chunk(NamedTuple):
    """Columns `start` to `stop` of a bucket, and the slots that have some of them.

    Attributes:
        owner: the rank whose row alone is meant, by its number along the ZeRO axis; None: those of all.
    """

    bucket: Bucket
    start: int
    stop: int
    slots: tuple[Slot, ...]
    owner: int | None = None

    @property
    def rows(self) -> int:
        """That it is of."""
        return self.bucket.zero.size if self.owner is None else 1

    @property
    def numel(self) -> int:
        """Elements of the message."""
        return self.rows * (self.stop - self.start)

    def send(self, room: Tensor) -> Pending:
        """Start filling the room [numel] on every rank."""
        zero, own = self.bucket.zero, self.bucket.master[self.start : self.stop]
        if self.owner is None:
            return all_gather(room, own.to(room.dtype), zero.group)
        if self.owner == zero.rank:
            room.copy_(own)
        return broadcast(room, self.owner, zero.group)


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
        chunk = self.chunks[self.launched]
        self._work = chunk.send(self._room(chunk))
        self._note("gather", chunk)
        self.launched += 1

    @torch.no_grad()
    def _take(self) -> None:
        chunk = self.chunks[self.taken]
        assert self._work is not None  # it was launched when the one before it was taken
        self._work.wait()
        self._work = None  # it holds what was sent
        values = self._room(chunk).view(chunk.rows, -1)
        for slot in chunk.slots:
            slot.take(values, chunk.start)
        self._note("arrive", chunk)
        self.taken += 1
        self._launch()

    def _note(self, what: str, chunk: Chunk) -> None:
        if self._events is not None:
            self._events.append(Event(what, tuple(slot.name for slot in chunk.slots)))

    def _room(self, chunk: Chunk) -> Tensor:
        """[numel] of the buffer."""
        dtype = chunk.bucket.dtype
        if dtype not in self._buffers:
            self._buffers[dtype] = torch.empty(self._longest(dtype), dtype=dtype, device=chunk.bucket.device)
        return self._buffers[dtype][: chunk.numel]

    def _longest(self, dtype: torch.dtype) -> int:
        """Elements of the longest chunk of a type."""
        return max(chunk.numel for chunk in self.chunks if chunk.bucket.dtype == dtype)


def _chunks(bucket: Bucket, size: int) -> Iterator[Chunk]:
    """A bucket's columns, the last ones first: its parameters lie there from the last one of the model to the first."""
    if not bucket.even:
        yield from (chunk for slot in bucket.slots for chunk in _of_one(bucket, slot, size))
        return
    columns, stop = max(size // bucket.zero.size, 1), bucket.width
    while stop > 0:
        start = max(stop - columns, 0)
        slots = tuple(slot for slot in bucket.slots if slot.start < stop and start < slot.start + slot.width)
        yield Chunk(bucket, start, stop, tuple(slot for slot in slots if slot.width))
        stop = start


def _of_one(bucket: Bucket, slot: Slot, size: int) -> Iterator[Chunk]:
    assert isinstance(slot, WholeSlot)  # by rows ranks have as many columns
    stop = slot.start + slot.width
    for start in range(slot.start, stop, size):
        yield Chunk(bucket, start, min(start + size, stop), (slot,), slot.owner)
