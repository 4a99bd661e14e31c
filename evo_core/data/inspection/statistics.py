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
    lengths: dict[str, list[np.ndarray]] = {}
    sizes: dict[str, list[int]] = {}
    negative: dict[str, int] = {}
    tokens = 0
    for number, shard in enumerate(shards, 1):
        reader = BinReader(shard.path)
        lengths.setdefault(shard.group, []).append(reader.lengths)
        sizes.setdefault(shard.group, []).append(shard.path.stat().st_size)
        negative[shard.group] = negative.get(shard.group, 0) + (_minus_signs(shard) if trained else 0)
        tokens += int(reader.lengths.sum())
        on_progress(number / len(shards), tokens)
    found = {
        group: _statistics(lengths[group], sum(sizes[group]), negative[group] if trained else None) for group in lengths
    }
    if len(found) > 1:
        every = [array for arrays in lengths.values() for array in arrays]
        total_bytes = sum(size for of_group in sizes.values() for size in of_group)
        found["all"] = _statistics(every, total_bytes, sum(negative.values()) if trained else None)
    return found


def _statistics(arrays: Iterable[np.ndarray], size: int, negative: int | None) -> Statistics:
    arrays = list(arrays)
    lengths = np.concatenate(arrays)
    tokens = int(lengths.sum())
    trained = None if negative is None else tokens - negative
    if not len(lengths):
        return Statistics(len(arrays), 0, 0, size, 0, 0, 0, 0, (), trained)
    shortest, median, p95, longest = map(int, np.percentile(lengths, [0, 50, 95, 100], method="inverted_cdf"))
    return Statistics(
        files=len(arrays),
        documents=len(lengths),
        tokens=tokens,
        bytes=size,
        shortest=shortest,
        median=median,
        p95=p95,
        longest=longest,
        histogram=_histogram(lengths),
        trained=trained,
    )


def _histogram(lengths: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """Steps from the shortest to the longest document, those in between without documents included."""
    # The exponent of the float is exact: lengths are far below 2**53.
    exponents = np.frexp(lengths)[1]
    counts = np.bincount(exponents)
    first = int(exponents.min())
    steps = ((0, 0) if e == 0 else (2 ** (e - 1), 2**e - 1) for e in range(first, len(counts)))
    return tuple((low, high, int(count)) for (low, high), count in zip(steps, counts[first:], strict=True))


def _minus_signs(shard: ShardFile) -> int:
    """Negative ids in a file: there is no other minus sign in it."""
    count = 0
    with shard.path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            count += chunk.count(b"-")
    return count
