"""The order of more documents than a permutation is kept of: the same at any position, and nothing of its size in
memory.

Above `Scale.documents` an epoch of a data type is shuffled in two steps. Its blocks of neighbouring documents
(`evo_core.data.corpus.blocks`) come in a random order, another in each epoch. That is cut into groups, `Scale.group`
blocks over all types, of which each has its share; within a group documents come in a random order. Only the order of
blocks and the tokens before each group are kept of an epoch: 4 bytes for 256 documents. A group's documents are read,
shuffled and summed when a pack needs them, and the newest few groups are kept.

So two documents behind each other in the stream are of the same block once in 2048 times, and neighbours of the raw
files stay neighbours once in 2^19: more often than in one permutation of all, and never felt.

Packs are shuffled within windows: one is the same share of every type's packs in the epoch, small enough to need two
groups of each type or so. So types mix in proportion everywhere, the parts of a long document come apart, and all
processes of a machine read in the same few groups at a time, which stay in the page cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evo_core.data.corpus.blocks import BlockedDocuments
from evo_core.data.corpus.index import Arrays, Epochs, Index
from evo_core.data.loader.order import EpochOrder, compact, cut, permutation
from evo_core.data.loader.packing import Pieces

_LEAST = 8
"""A group of a type has at least this part of all types' blocks of a group."""


def blocks_of_group(blocks: int, of_all: int, group: int) -> int:
    """Blocks of a group of one data type: its share of them, so that many types need no more memory than one.

    A type of few documents gets more than that: what its groups are drawn from would be too little.

    Args:
        blocks: of the type.
        of_all: blocks of all types.
        group: blocks that the types have in a group together.
    """
    return max(-(-blocks * group // max(of_all, 1)), -(-group // _LEAST))


class Groups:
    """The documents of one data type in the order of any epoch, group by group.

    Args:
        documents: block by block.
        blocks: of a group.
        seed: key of the permutations.
        name: of the data type.
        index: keeps what is worked out.
    """

    def __init__(self, documents: BlockedDocuments, blocks: int, *, seed: int, name: str, index: Index) -> None:
        self.documents, self._blocks, self._seed, self._name = documents, blocks, seed, name
        self.count = -(-len(documents) // blocks)
        # A pack may need the end of one epoch and the start of the next, and their packs are mixed.
        self._epochs = Epochs(index, f"blocks-{name}", self._epoch, kept=3)
        # A window needs two groups or three, and a step may lie in two windows.
        self._groups = Epochs(index, f"documents-{name}", self._group, kept=4)

    def bounds(self, epoch: int) -> Arrays:
        """Where the groups of an epoch end: ``documents`` and ``tokens`` up to then, int64 [groups] each."""
        return self._epochs(epoch)

    def __call__(self, epoch: int, group: int) -> Arrays:
        """The documents of a group in their order.

        Returns:
            ``files`` int32, number of the file; ``starts`` int64, where its ids begin in there; ``ends`` int64, tokens
            of the group up to the document's end; all [documents of the group].
        """
        return self._groups(epoch, group)

    def _epoch(self, epoch: int) -> Arrays:
        count = len(self.documents)
        order = permutation(count, self._seed, "blocks", self._name, epoch).astype(np.int32)
        sizes = np.full(self.count, self._blocks * self.documents.size, np.int64)
        tokens = np.empty(self.count, np.int64)
        for group in range(self.count):
            blocks = order[group * self._blocks : (group + 1) * self._blocks]
            tokens[group] = (self.documents.before[blocks + 1] - self.documents.before[blocks]).sum()
        # All blocks are full but the last one of the type, wherever it comes, and the last group may have fewer.
        sizes[-1] -= (self.count * self._blocks - count) * self.documents.size
        sizes[int(np.flatnonzero(order == count - 1)[0]) // self._blocks] -= (
            count * self.documents.size - self.documents.documents
        )
        return {"order": order, "documents": np.cumsum(sizes), "tokens": np.cumsum(tokens)}

    def _group(self, epoch: int, group: int) -> Arrays:
        blocks = self._epochs(epoch)["order"][group * self._blocks : (group + 1) * self._blocks]
        table = self.documents.load(blocks.astype(np.int64))
        order = permutation(len(table.lengths), self._seed, "documents", self._name, epoch, group)
        return {"files": table.files[order], "starts": table.starts[order], "ends": np.cumsum(table.lengths[order])}


class GroupedTokens:
    """Packs cut from the endless tokens of one data type, one document behind the other, as `TokenStream`'s.

    Attributes:
        groups: of an epoch.

    Args:
        groups: of the type's documents.
        packed_length: tokens of a pack.
    """

    def __init__(self, groups: Groups, packed_length: int) -> None:
        self._groups, self.per_pack, self.size = groups, packed_length, groups.documents.tokens
        self.groups = groups.count

    def pieces(self, number: int) -> Pieces:
        """The documents' parts that make up a pack."""
        start, stop = number * self.per_pack, (number + 1) * self.per_pack
        parts = []
        while start < stop:
            epoch, at = divmod(start, self.size)
            ends = self._groups.bounds(epoch)["tokens"]
            group = int(ends.searchsorted(at, side="right"))
            before = int(ends[group - 1]) if group else 0
            until = min(int(ends[group]), at + stop - start)
            parts.append(self._of_group(epoch, group, at - before, until - before))
            start += until - at
        return Pieces.joined(parts)

    def _of_group(self, epoch: int, group: int, start: int, stop: int) -> Pieces:
        found = self._groups(epoch, group)

        def read(chosen: slice, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
            begin = found["starts"][chosen]
            return self._groups.documents.read(found["files"][chosen], begin + starts, begin + stops)

        return cut(found["ends"], start, stop, read)


class GroupedRows:
    """Packs of whole documents, each cut to seq_len, as `RowStream`'s.

    Attributes:
        groups: of an epoch.

    Args:
        groups: of the type's documents.
        seq_len: tokens of a row.
        rows: of a pack.
    """

    def __init__(self, groups: Groups, seq_len: int, rows: int) -> None:
        self._groups, self._seq_len, self.per_pack, self.size = groups, seq_len, rows, groups.documents.documents
        self.groups = groups.count

    def pieces(self, number: int) -> Pieces:
        """The documents of a pack, a row each."""
        rows: list[np.ndarray] = []
        for position in range(number * self.per_pack, (number + 1) * self.per_pack):
            epoch, at = divmod(position, self.size)
            ends = self._groups.bounds(epoch)["documents"]
            group = int(ends.searchsorted(at, side="right"))
            row = slice(local := at - (int(ends[group - 1]) if group else 0), local + 1)
            found = self._groups(epoch, group)
            length = found["ends"][row] - (found["ends"][local - 1] if local else 0)
            begin = found["starts"][row]
            rows += self._groups.documents.read(found["files"][row], begin, begin + np.minimum(length, self._seq_len))
        return Pieces.whole(rows)


class _Window(NamedTuple):
    """Packs of an epoch that are shuffled together.

    Attributes:
        start, stop: its positions in the global order.
        firsts: its first pack of each type's stream.
        counts: its packs of each type.
        order: int32 [stop - start], which of them comes at each position; they are numbered type after type.
    """

    start: int
    stop: int
    firsts: tuple[int, ...]
    counts: tuple[int, ...]
    order: np.ndarray

    def at(self, position: int) -> tuple[int, int]:
        """(type, pack of that type's stream)."""
        item = int(self.order[position - self.start])
        for number, (first, count) in enumerate(zip(self.firsts, self.counts, strict=True)):
            if item < count:
                return number, first + item
            item -= count
        raise AssertionError("the window's packs do not add up")


class _Epoch(NamedTuple):
    """The windows of an epoch.

    Of n packs of a type, window w of W has those from floor(n * w / W) on.

    Attributes:
        start: its first position in the global order.
        firsts: its first pack of each type's stream.
        counts: its packs of each type.
        windows: how many.
    """

    start: int
    firsts: tuple[int, ...]
    counts: tuple[int, ...]
    windows: int

    def before(self, window: int) -> list[int]:
        """Packs of each type before a window."""
        return [count * window // self.windows for count in self.counts]

    def window_of(self, at: int) -> int:
        """The window that the epoch's pack number `at` lies in."""
        # Rounding down puts at most `types` packs fewer before a window than its share.
        window = at * self.windows // sum(self.counts)
        while sum(self.before(window + 1)) <= at:
            window += 1
        return window


class WindowOrder(EpochOrder):
    """Epoch after epoch, each in windows that hold the same share of every type's packs, in a random order.

    Args:
        sizes, per_pack, seed, index: as for `PackOrder`.
        windows: of an epoch, at least; where it has fewer packs, each is one.
        most: packs of a window.
    """

    def __init__(
        self, sizes: Sequence[int], per_pack: int, seed: int, index: Index | None = None, *, windows: int, most: int
    ) -> None:
        super().__init__(sizes, per_pack)
        self._least, self._most = windows, most

        def order(epoch: int, window: int) -> dict[str, np.ndarray]:
            here = self._epoch(epoch)
            count = sum(here.before(window + 1)) - sum(here.before(window))
            return {"packs": compact(permutation(count, seed, "packs", epoch, window))}

        self._order = Epochs(index or Index(), "packs", order, kept=3)  # a step may lie in two
        self._held: _Window | None = None

    def locate(self, position: int) -> tuple[int, int]:
        """(type, pack of that type's stream) at a position in the global order."""
        window = self._held  # nearly every pack of a run is in the same as the one before
        if window is None or not window.start <= position < window.stop:
            self._held = window = self._find(position)
        return window.at(position)

    def _find(self, position: int) -> _Window:
        number = self.epoch_of(position)
        epoch = self._epoch(number)
        window = epoch.window_of(position - epoch.start)
        before, after = epoch.before(window), epoch.before(window + 1)
        return _Window(
            epoch.start + sum(before),
            epoch.start + sum(after),
            tuple(map(int.__add__, epoch.firsts, before)),
            tuple(map(int.__sub__, after, before)),
            self._order(number, window)["packs"],
        )

    def _epoch(self, epoch: int) -> _Epoch:
        firsts, ends = ([self._first_pack(number, e) for number in range(self.types)] for e in (epoch, epoch + 1))
        packs = sum(ends) - sum(firsts)
        windows = max(min(max(self._least, -(-packs // self._most)), packs), 1)
        return _Epoch(sum(firsts), tuple(firsts), tuple(map(int.__sub__, ends, firsts)), windows)
