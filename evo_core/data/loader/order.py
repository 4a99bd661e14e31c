"""The order in which training sees the data: a function of (seed, data), computed at any position of it.

Each data type is an endless stream of tokens: its documents in a random order, then again in another order,
one permutation per epoch. Pack k of a type is tokens [k * P, (k + 1) * P) of its stream, P the packed length,
so that packs run across files and epochs, and no token is left out however small a type or a file is. Where
documents are not packed, a type is an endless stream of documents in the same way, and a pack takes micro_bsz.

Epoch e of a type with T tokens begins with pack floor(e * T / P). The global order is epoch after epoch, in
each a random permutation of all types' packs: types mix in proportion to their tokens. A step is a slice of
the global order, whatever the number of ranks.

Permutations and running sums are kept whole here; `large_order` is for more documents than that is good for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evo_core.data.corpus.document_set import TokenizedDocuments
from evo_core.data.corpus.index import Epochs, Index
from evo_core.data.loader.packing import IGNORE, Pieces


def permutation(length: int, *key: int | str) -> np.ndarray:
    """A random permutation of range(length) that depends on the key alone, int64 [length].

    numpy never changes the stream of RandomState, so a run resumes in the same order with a later numpy.
    """
    # Hashed, since generators seeded with neighbouring numbers (epoch 3, epoch 4) begin alike.
    words = np.frombuffer(hashlib.sha256(repr(key).encode()).digest(), "<u4")
    return np.random.RandomState(words.astype(np.uint32)).permutation(length)


def compact(numbers: np.ndarray) -> np.ndarray:
    """A permutation of the numbers from 0 on, int64 [n], in half the memory where they fit: int32 [n]."""
    return numbers.astype(np.int32) if len(numbers) < 2**31 else numbers


class Stream(Protocol):
    """The packs of one data type, any of them at any time.

    Attributes:
        size: what one epoch holds, in units of `per_pack`.
        per_pack: how much of it a pack takes.
    """

    size: int
    per_pack: int

    def pieces(self, number: int) -> Pieces:
        """What pack `number` is made of."""


class TokenStream:
    """Packs cut from the endless tokens of one data type, one document behind the other.

    Args:
        documents: at least one token in all.
        packed_length: tokens of a pack.
        order: gives the order of documents in an epoch, int64 [documents].
        index: keeps the orders.
        name: of the data type.
    """

    def __init__(
        self,
        documents: TokenizedDocuments,
        packed_length: int,
        *,
        order: Callable[[int], np.ndarray],
        index: Index,
        name: str,
    ) -> None:
        self._documents, self.per_pack = documents, packed_length
        self.size = int(documents.lengths.sum())

        def ordered(epoch: int) -> dict[str, np.ndarray]:
            documents = order(epoch)
            return {"documents": compact(documents), "ends": np.cumsum(self._documents.lengths[documents])}

        # A pack may need the end of one epoch and the start of the next, and their packs are mixed.
        self._ordered = Epochs(index, f"documents-{name}", ordered, kept=3)

    def pieces(self, number: int) -> Pieces:
        """The documents' parts that make up a pack."""
        return self.tokens(number * self.per_pack, (number + 1) * self.per_pack)

    def tokens(self, start: int, stop: int) -> Pieces:
        """The documents' parts that make up tokens [start, stop) of the stream."""
        parts = []
        while start < stop:
            epoch, at = divmod(start, self.size)
            until = min(self.size, at + stop - start)
            parts.append(self._of_epoch(epoch, at, until))
            start += until - at
        return Pieces.joined(parts)

    def _of_epoch(self, epoch: int, start: int, stop: int) -> Pieces:
        order = self._ordered(epoch)
        return cut(
            order["ends"],
            start,
            stop,
            lambda chosen, starts, stops: self._documents.read(order["documents"][chosen], starts, stops),
        )


def cut(
    ends: np.ndarray, start: int, stop: int, read: Callable[[slice, np.ndarray, np.ndarray], list[np.ndarray]]
) -> Pieces:
    """The parts of documents that make up tokens [start, stop) of them all behind each other.

    Args:
        ends: int64 [documents], where each ends.
        read: gives tokens [starts[i], stops[i]) of each of some documents behind each other.
    """
    # The documents that hold tokens `start` and `stop - 1`; both are cut to what the pack takes of them.
    first, last = int(ends.searchsorted(start, side="right")), int(ends.searchsorted(stop - 1, side="right"))
    chosen = slice(first, last + 1)
    before = int(ends[first - 1]) if first else 0
    whole = ends[chosen].copy()
    whole[1:] -= ends[first:last]
    whole[0] -= before
    starts, stops = np.zeros_like(whole), whole.copy()
    starts[0] = start - before
    stops[-1] = stop - (int(ends[last]) - int(whole[-1]))
    following = np.full(len(whole), IGNORE)
    lengths = stops - starts
    # A document that is cut off at the end of the pack has a next token, which is the label of the last one here.
    goes_on = stops[-1] < whole[-1]
    stops[-1] += goes_on
    ids = read(chosen, starts, stops)
    if goes_on:
        following[-1] = ids[-1][-1]
        ids[-1] = ids[-1][:-1]
    return Pieces(ids, lengths, following)


class RowStream:
    """Packs of whole documents, each cut to seq_len: the rows of ``use_packed_dataset: false``.

    Args:
        documents: at least one.
        seq_len: tokens of a row.
        rows: of a pack.
        order, index, name: as for `TokenStream`.
    """

    def __init__(
        self,
        documents: TokenizedDocuments,
        seq_len: int,
        rows: int,
        *,
        order: Callable[[int], np.ndarray],
        index: Index,
        name: str,
    ) -> None:
        self._documents, self._seq_len, self.per_pack = documents, seq_len, rows
        self.size = len(documents.lengths)
        self._ordered = Epochs(index, f"documents-{name}", lambda epoch: {"documents": compact(order(epoch))}, kept=3)

    def pieces(self, number: int) -> Pieces:
        """The documents of a pack, a row each."""
        positions = np.arange(number * self.per_pack, (number + 1) * self.per_pack)
        epochs, at = np.divmod(positions, self.size)
        documents = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            documents[chosen] = self._ordered(epoch)["documents"][at[chosen]]
        stops = np.minimum(self._documents.lengths[documents], self._seq_len)
        return Pieces.whole(self._documents.read(documents, np.zeros_like(stops), stops))


def shuffled(documents: int, seed: int, name: str) -> Callable[[int], np.ndarray]:
    """The order of a type's documents, by epoch: another random permutation in each, int64 [documents]."""
    return lambda epoch: permutation(documents, seed, "documents", name, epoch)


class Order(Protocol):
    """The global order of packs."""

    def locate(self, position: int) -> tuple[int, int]:
        """(type, pack of that type's stream) at a position in the order."""

    def epoch_of(self, position: int) -> int:
        """The pass over the data that a position belongs to."""


class EpochOrder:
    """A global order that goes epoch after epoch: which packs are in which, and nothing of their order there.

    Args:
        sizes: what each type holds in an epoch; at least 1 in all.
        per_pack: how much of it a pack takes.

    Attributes:
        types: how many there are.
    """

    def __init__(self, sizes: Sequence[int], per_pack: int) -> None:
        if sum(sizes) < 1:
            raise ValueError("an order of nothing")
        self._sizes, self._per_pack, self.types = tuple(sizes), per_pack, len(sizes)
        # The epoch asked for last, its first position and its end: nearly every pack of a run is in the same one.
        self._newest = (0, 0, self.packs_before(1))

    def packs_before(self, epoch: int) -> int:
        """Packs in the epochs before this one."""
        return sum(self._first_pack(number, epoch) for number in range(len(self._sizes)))

    def epoch_of(self, position: int) -> int:
        """The epoch of a position in the global order."""
        epoch, first, end = self._newest
        if first <= position < end:
            return epoch
        # An epoch has at most `types` packs fewer before it than its tokens would fill.
        low = position * self._per_pack // sum(self._sizes)
        high = (position + len(self._sizes) + 1) * self._per_pack // sum(self._sizes) + 1
        while low < high - 1:
            middle = (low + high) // 2
            if self.packs_before(middle) <= position:
                low = middle
            else:
                high = middle
        self._newest = low, self.packs_before(low), self.packs_before(low + 1)
        return low

    def _first_pack(self, number: int, epoch: int) -> int:
        # Rounded down: a pack that holds the end of one epoch and the start of the next counts with the later one.
        return epoch * self._sizes[number] // self._per_pack


class PackOrder(EpochOrder):
    """Epoch after epoch, each a random order of all types' packs.

    Args:
        sizes, per_pack: as for `EpochOrder`.
        seed: key of the permutations.
        index: keeps the permutations.
    """

    def __init__(self, sizes: Sequence[int], per_pack: int, seed: int, index: Index | None = None) -> None:
        super().__init__(sizes, per_pack)

        def order(epoch: int) -> dict[str, np.ndarray]:
            count = self.packs_before(epoch + 1) - self.packs_before(epoch)
            return {"packs": compact(permutation(count, seed, "packs", epoch))}

        self._order = Epochs(index or Index(), "packs", order, kept=2)  # a step may lie in two

    def locate(self, position: int) -> tuple[int, int]:
        """(type, pack of that type's stream) at a position in the global order."""
        epoch = self.epoch_of(position)
        item = int(self._order(epoch)["packs"][position - self.packs_before(epoch)])
        for number in range(self.types):
            first = self._first_pack(number, epoch)
            count = self._first_pack(number, epoch + 1) - first
            if item < count:
                return number, first + item
            item -= count
        raise AssertionError("the epochs' packs do not add up")


@dataclass(frozen=True)
class BatchSize:
    """Micro-batches of a step over all ranks: constant, or growing by ``rampup_batch_size``.

    At step s it is min(start + s // every * increment, full).
    """

    full: int
    start: int
    increment: int = 0
    every: int = 1

    @classmethod
    def constant(cls, full: int) -> BatchSize:
        """The same size at every step."""
        return cls(full, full)

    @property
    def growth(self) -> list[int]:
        """Start, increment and every how many steps; nothing where all steps have the same size."""
        return [self.start, self.increment, self.every] if self.increment and self.start < self.full else []

    @classmethod
    def grown(cls, full: int, growth: Sequence[int]) -> BatchSize:
        """The one of this size at last that has this `growth`."""
        return cls(full, *growth) if growth else cls.constant(full)

    def at(self, step: int) -> int:
        """Micro-batches of this step."""
        return min(self.start + step // self.every * self.increment, self.full)

    @property
    def growing(self) -> int:
        """Micro-batches of all steps before the batch has its full size."""
        levels = -(-(self.full - self.start) // self.increment) if self.increment else 0
        return self.before(max(levels, 0) * self.every)

    def before(self, step: int) -> int:
        """Micro-batches of all earlier steps; as a sum in closed form, since a resumed run asks for any step."""
        if not self.increment or self.start >= self.full:
            return step * min(self.start, self.full)
        levels = -(-(self.full - self.start) // self.increment)  # growths until it is full
        grown = min(step // self.every, levels)
        whole = self.every * (grown * self.start + self.increment * grown * (grown - 1) // 2)
        return whole + (step - grown * self.every) * self.at(grown * self.every)
