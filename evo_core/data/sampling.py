"""The order in which training sees the data: a function of (seed, data), computed at any place of it.

Each data type is an endless stream of tokens: its documents in a random order, then again in another order,
one permutation per epoch. Pack k of a type is tokens [k * P, (k + 1) * P) of its stream, P the packed length,
so that packs run across files and epochs, and no token is left out however small a type or a file is.

Epoch e of a type with T tokens begins with pack floor(e * T / P). The global order is epoch after epoch, in
each a random permutation of all types' packs: types mix in proportion to their tokens. A step is a slice of
the global order, whatever the number of ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from evo_core.data.document_set import Documents
from evo_core.data.packing import Piece


def permutation(length: int, *key: int | str) -> np.ndarray:
    """A random permutation of range(length) that depends on the key alone, int64 [length].

    numpy never changes the stream of RandomState, so a run resumes in the same order with a later numpy.
    """
    words = np.frombuffer(hashlib.sha256(repr(key).encode()).digest(), "<u4")
    return np.random.RandomState(words.astype(np.uint32)).permutation(length)


class ShuffledStream:
    """The endless token stream of one data type.

    Args:
        documents: at least one token in all.
        seed, name: the key of its permutations.
    """

    def __init__(self, documents: Documents, *, seed: int, name: str) -> None:
        self._documents = documents
        self.tokens = int(documents.lengths.sum())
        lengths = documents.lengths

        # A pack may need the end of one epoch and the start of the next, and their packs are mixed.
        @lru_cache(maxsize=3)
        def epoch_order(epoch: int) -> tuple[np.ndarray, np.ndarray]:
            order = permutation(len(lengths), seed, "documents", name, epoch)
            return order, np.cumsum(lengths[order])

        self._epoch_order = epoch_order

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """The documents' pieces that make up tokens [start, stop) of the stream."""
        result: list[Piece] = []
        while start < stop:
            epoch, at = divmod(start, self.tokens)
            until = min(self.tokens, at + stop - start)
            result.extend(self._pieces_of_epoch(epoch, at, until))
            start += until - at
        return result

    def _pieces_of_epoch(self, epoch: int, start: int, stop: int) -> list[Piece]:
        order, ends = self._epoch_order(epoch)
        result = []
        place = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            document = int(order[place])
            end = int(ends[place])
            length = int(self._documents.lengths[document])
            first = start - (end - length)
            last = min(stop, end) - (end - length)
            ids = self._documents.tokens(document, first, min(last + 1, length))
            result.append(Piece(ids, last - first))
            start, place = min(stop, end), place + 1
        return result


class PackOrder:
    """The global order of packs.

    Args:
        tokens: tokens of each type; at least one in all.
        packed_length: tokens of a pack.
        seed: key of the permutations.
    """

    def __init__(self, tokens: Sequence[int], packed_length: int, seed: int) -> None:
        if sum(tokens) < 1:
            raise ValueError("an order of no tokens")
        self._tokens, self._packed_length, self._seed = tuple(tokens), packed_length, seed

        @lru_cache(maxsize=2)
        def epoch_order(epoch: int) -> np.ndarray:
            count = self.packs_before(epoch + 1) - self.packs_before(epoch)
            return permutation(count, seed, "packs", epoch)

        self._epoch_order: Callable[[int], np.ndarray] = epoch_order

    def packs_before(self, epoch: int) -> int:
        """Packs in the epochs before this one."""
        return sum(self._first_pack(number, epoch) for number in range(len(self._tokens)))

    def epoch_of(self, place: int) -> int:
        """The epoch of a place in the global order."""
        # An epoch has at most `types` packs fewer before it than its tokens would fill.
        low = place * self._packed_length // sum(self._tokens)
        high = (place + len(self._tokens) + 1) * self._packed_length // sum(self._tokens) + 1
        while low < high - 1:
            middle = (low + high) // 2
            if self.packs_before(middle) <= place:
                low = middle
            else:
                high = middle
        return low

    def locate(self, place: int) -> tuple[int, int]:
        """(type, pack of that type's stream) at a place in the global order."""
        epoch = self.epoch_of(place)
        item = int(self._epoch_order(epoch)[place - self.packs_before(epoch)])
        for number in range(len(self._tokens)):
            first = self._first_pack(number, epoch)
            count = self._first_pack(number, epoch + 1) - first
            if item < count:
                return number, first + item
            item -= count
        raise AssertionError("the epochs' packs do not add up")

    def _first_pack(self, number: int, epoch: int) -> int:
        return epoch * self._tokens[number] // self._packed_length


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

    def at(self, step: int) -> int:
        """Micro-batches of this step."""
        return min(self.start + step // self.every * self.increment, self.full)

    def before(self, step: int) -> int:
        """Micro-batches of all earlier steps."""
        if not self.increment or self.start >= self.full:
            return step * min(self.start, self.full)
        levels = -(-(self.full - self.start) // self.increment)  # growths until it is full
        grown = min(step // self.every, levels)
        whole = self.every * (grown * self.start + self.increment * grown * (grown - 1) // 2)
        return whole + (step - grown * self.every) * self.at(grown * self.every)
