"""How many documents and tokens there are, and how long documents are: from the metas alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evo_core.data.inspection.find import ShardFile
from evo_core.data.shards.format import BinReader

_CHUNK = 1 << 24


@dataclass(frozen=True)
class Statistics:
    """Of some token files.

    Attributes:
        files, documents, tokens, bytes: how many.
        shortest, median, p95, longest: tokens of a document; 0 without documents. The median and the 95th
            percentile are lengths that occur (nearest rank).
        histogram: (from, to, documents): documents with from <= tokens <= to; the steps double.
        trained: tokens whose id is not negative; None if it was not asked for.
    """

    files: int
    documents: int
    tokens: int
    bytes: int
    shortest: int
    median: int
    p95: int
    longest: int
    histogram: tuple[tuple[int, int, int], ...]
    trained: int | None

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return vars(self) | {"histogram": [list(step) for step in self.histogram]}


def statistics(
    shards: Sequence[ShardFile],
    *,
    trained: bool = False,
    on_progress: Callable[[float, int], None] = lambda share, tokens: None,
) -> dict[str, Statistics]:
    """Of each group of shards (``train/en``), and of all together under ``all`` where there are several.

    Args:
        shards: of `find_shards`.
        trained: also count the tokens trained on, which reads the files and not only their metas.
        on_progress: called with (share of the files done, tokens).

    Raises:
        DataError: a meta is missing or wrong.
    """
    lengths: dict[str, _Lengths] = {}
    sizes: dict[str, list[int]] = {}
    negative: dict[str, int] = {}
    tokens = 0
    for number, shard in enumerate(shards, 1):
        reader = BinReader(shard.path)
        lengths.setdefault(shard.group, _Lengths()).add(reader.lengths)
        sizes.setdefault(shard.group, []).append(shard.path.stat().st_size)
        negative[shard.group] = negative.get(shard.group, 0) + (_minus_signs(shard) if trained else 0)
        tokens += int(reader.lengths.sum())
        on_progress(number / len(shards), tokens)
    found = {
        group: _statistics(lengths[group], sum(sizes[group]), negative[group] if trained else None) for group in lengths
    }
    if len(found) > 1:
        every = _Lengths.joined(lengths.values())
        total_bytes = sum(size for of_group in sizes.values() for size in of_group)
        found["all"] = _statistics(every, total_bytes, sum(negative.values()) if trained else None)
    return found


class _Lengths:
    """How many documents have which length; a count for each length, so that it does not grow with the documents.

    Attributes:
        files, documents, tokens: how many there are.
    """

    _LONG = 1 << 20
    """Documents from here on are kept one by one: they are few, and their lengths many."""

    def __init__(self) -> None:
        self.files = self.documents = self.tokens = 0
        self._short = np.zeros(0, np.int64)
        self._long: list[np.ndarray] = []

    def add(self, lengths: np.ndarray) -> None:
        """The documents of another file, int64 [documents]."""
        self.files, self.documents, self.tokens = (
            self.files + 1,
            self.documents + len(lengths),
            self.tokens + int(lengths.sum()),
        )
        is_long = lengths >= self._LONG
        if is_long.any():
            self._long.append(lengths[is_long])
            lengths = lengths[~is_long]
        self._short = _sum(self._short, np.bincount(lengths))

    @classmethod
    def joined(cls, several: Iterable[_Lengths]) -> _Lengths:
        """Those of several groups together."""
        result = cls()
        for lengths in several:
            result.files += lengths.files
            result.documents += lengths.documents
            result.tokens += lengths.tokens
            result._short = _sum(result._short, lengths._short)
            result._long += lengths._long
        return result

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """The lengths that occur, ascending, and how many documents have each; int64."""
        short = np.flatnonzero(self._short)
        long, counts = np.unique(np.concatenate([*self._long, np.zeros(0, np.int64)]), return_counts=True)
        return np.concatenate([short, long]), np.concatenate([self._short[short], counts])


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of two arrays of which the shorter one goes on with zeros."""
    result = np.zeros(max(len(a), len(b)), np.int64)
    result[: len(a)] += a
    result[: len(b)] += b
    return result


def _statistics(lengths: _Lengths, size: int, negative: int | None) -> Statistics:
    trained = None if negative is None else lengths.tokens - negative
    if not lengths.documents:
        return Statistics(lengths.files, 0, 0, size, 0, 0, 0, 0, (), trained)
    values, counts = lengths.counted()
    # The nearest rank: the shortest length that at least so many documents of 100 do not exceed.
    ranks = [max(-(-percent * lengths.documents // 100), 1) for percent in (0, 50, 95, 100)]
    shortest, median, p95, longest = values[np.cumsum(counts).searchsorted(ranks)].tolist()
    return Statistics(
        files=lengths.files,
        documents=lengths.documents,
        tokens=lengths.tokens,
        bytes=size,
        shortest=shortest,
        median=median,
        p95=p95,
        longest=longest,
        histogram=_histogram(values, counts),
        trained=trained,
    )


def _histogram(values: np.ndarray, counts: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """Steps from the shortest to the longest document, those in between without documents included.

    Args:
        values, counts: int64, lengths that occur, and how many documents have each.
    """
    # The exponent of the float is exact: lengths are far below 2**53.
    exponents = np.frexp(values)[1]
    documents = np.zeros(int(exponents.max()) + 1, np.int64)
    np.add.at(documents, exponents, counts)
    first = int(exponents.min())
    steps = ((0, 0) if e == 0 else (2 ** (e - 1), 2**e - 1) for e in range(first, len(documents)))
    return tuple((low, high, int(count)) for (low, high), count in zip(steps, documents[first:], strict=True))


def _minus_signs(shard: ShardFile) -> int:
    """Negative ids in a file: there is no other minus sign in it."""
    count = 0
    with shard.path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            count += chunk.count(b"-")
    return count
