"""InternEvo's order (``data.packing: internevo``): packs of one file each, whose tails are dropped.

Each file's documents are shuffled by ``RandomState(1024)``, put behind each other and cut into packs; what is left at
the end of a file is never seen. An epoch is one permutation of all files' packs by ``RandomState(seed)``, whose state
goes on from epoch to epoch, without its last packs if they make no whole batch. A type's files are read folder by
folder, those of a folder before those of its sub-folders (`bin_files`), types in the order of their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from evo_core.data.corpus.document_set import DocumentSet
from evo_core.data.corpus.index import Epochs, Index
from evo_core.data.loader.order import TokenStream
from evo_core.data.loader.packing import Pieces
from evo_core.errors import DataError

_FILE_SEED = 1024


class FileStream:
    """The packs of one data type, each of one file.

    Args:
        documents: in the order of their files.
        packed_length: tokens of a pack.
        index: keeps their order.
        name: of the data type.
    """

    per_pack = 1

    def __init__(self, documents: DocumentSet, packed_length: int, *, index: Index, name: str) -> None:
        self._packed_length = packed_length
        self._tokens = TokenStream(
            documents, packed_length, order=lambda epoch: _file_order(documents), index=index, name=name
        )
        self._starts = _pack_starts(documents, packed_length)
        self.size = len(self._starts)

    def pieces(self, number: int) -> Pieces:
        """The documents' parts that make up a pack."""
        start = int(self._starts[number])
        return self._tokens.tokens(start, start + self._packed_length)


def _file_order(documents: DocumentSet) -> np.ndarray:
    """The documents of all files, each file's shuffled, int64."""
    orders = [
        start + np.random.RandomState(_FILE_SEED).permutation(stop - start)
        for start, stop in pairwise(_file_starts(documents))
    ]
    return np.concatenate([*orders, np.zeros(0, np.int64)])


def _pack_starts(documents: DocumentSet, packed_length: int) -> np.ndarray:
    """Where each pack starts in the tokens of the documents in that order, int64 [packs]."""
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(documents.lengths)])
    bounds = [int(before[start]) for start in _file_starts(documents)]
    starts = [
        np.arange(start, start + (stop - start) // packed_length * packed_length, packed_length)
        for start, stop in pairwise(bounds)
    ]
    return np.concatenate([*starts, np.zeros(0, np.int64)])


def _file_starts(documents: DocumentSet) -> list[int]:
    """The first document of each file, and how many there are in all."""
    changes = np.flatnonzero(np.diff(documents.files)) + 1
    return [0, *changes.tolist(), len(documents)]


class InternevoOrder:
    """The global order of packs.

    Args:
        packs: of each type.
        growing: packs of all steps before the batch has its full size (``rampup_batch_size``).
        batch: packs of a full step over all ranks.
        seed: of the permutations.
        index: keeps them.

    Raises:
        DataError: there are fewer packs than a step needs.
    """

    def __init__(self, packs: Sequence[int], growing: int, batch: int, seed: int, index: Index | None = None) -> None:
        self._bounds = np.cumsum([0, *packs])
        total = int(self._bounds[-1])
        if total < max(growing, batch):
            raise DataError(
                f"{total} packs are fewer than the {max(growing, batch)} that "
                + ("the growing batch needs" if growing > batch else "one step needs"),
                key="data.packing",
                hint="set it to continuous, which loses no tail of a file, or make the batch smaller",
            )
        self._first = growing + (total - growing) // batch * batch
        self._length = total // batch * batch
        self._random = np.random.RandomState(seed)
        self._drawn = 0

        def order(epoch: int) -> dict[str, np.ndarray]:
            if epoch < self._drawn:
                self._random, self._drawn = np.random.RandomState(seed), 0
            drawn = np.zeros(0, np.int64)
            while self._drawn <= epoch:
                drawn = self._random.permutation(total)
                self._drawn += 1
            return {"packs": drawn}

        self._order = Epochs(index or Index(), "packs", order, kept=2)

    def locate(self, position: int) -> tuple[int, int]:
        """(type, number of the pack among that type's) at a position in the global order."""
        epoch = self.epoch_of(position)
        at = position if epoch == 0 else (position - self._first) % self._length
        pack = int(self._order(epoch)["packs"][at])
        data_type = int(np.searchsorted(self._bounds, pack, side="right")) - 1
        return data_type, pack - int(self._bounds[data_type])

    def epoch_of(self, position: int) -> int:
        """The pass over the data that a position belongs to."""
        return 0 if position < self._first else 1 + (position - self._first) // self._length
