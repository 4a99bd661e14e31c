"""Documents of one data type as a loader sees them: their lengths, and tokens at random access."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import xxhash

from evo_core.data.corpus.token_cache import TokenFile


class TokenizedDocuments(Protocol):
    """Tokenized documents, numbered from 0.

    Attributes:
        lengths: int64 [documents], tokens of each.
    """

    @property
    def lengths(self) -> np.ndarray: ...

    def read(self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """Tokens [starts[i], stops[i]) of document documents[i], for each i.

        Args:
            documents, starts, stops: int64 [n].

        Returns:
            n arrays [stops[i] - starts[i]] of any integer type; they may be views, not to be written to.
        """


class ByNumber(Protocol):
    """The ids of files by their numbers: a list of them, or one that maps them when they are asked for."""

    def __getitem__(self, file: int, /) -> np.ndarray: ...


class Table(NamedTuple):
    """Where documents lie: int32 [documents] number of the file, int64 first token in it, int64 tokens."""

    files: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


class DocumentSet:
    """The documents of several token files as one sequence.

    Args:
        ids: the tokens of each file.
        table: which of them make the documents.
    """

    def __init__(self, ids: Sequence[np.ndarray], table: Table) -> None:
        self._ids = list(ids)
        self.files, self._starts, self.lengths = table

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """See `TokenizedDocuments`; int32 [stops[i] - starts[i]], views of the files."""
        at = self._starts[documents]
        return read_spans(self._ids, self.files[documents], at + starts, at + stops)


def read_spans(ids: ByNumber, files: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
    """Ids [starts[i], stops[i]) of file files[i], for each i; int32, views of the files.

    Args:
        ids: of each file, int32 [tokens].
        files, starts, stops: int [n].
    """
    spans = zip(files.tolist(), starts.tolist(), stops.tolist(), strict=True)
    return [ids[file][start:stop] for file, start, stop in spans]


class DocumentSpan(NamedTuple):
    """Documents [start, stop) of a file, given by its number."""

    file: int
    start: int
    stop: int


def tabulate(
    files: Sequence[TokenFile], min_lengths: Sequence[int], spans: Sequence[DocumentSpan] | None = None
) -> tuple[Table, str, int]:
    """The documents of some files that are long enough; empty ones never are.

    Args:
        files: their order is the documents' order, where nothing else is said.
        min_lengths: tokens of the shortest document, for each file.
        spans: all documents, in another order.

    Returns:
        The documents, a digest of the tokens of them all in their order, and how many tokens are trained on.
    """
    counts = np.array([len(file) for file in files], np.int64)
    numbers = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    starts = _joined([file.starts[:-1] for file in files], np.int64)
    lengths = _joined([np.diff(file.starts) for file in files], np.int64)
    hashes = _joined([file.hashes for file in files], np.uint64)
    kept = lengths >= np.maximum(np.array(min_lengths, np.int64), 1)[numbers]
    if spans is not None:
        order = _ranges(np.cumsum(counts) - counts, spans)
        chosen = order[kept[order]]
    else:
        chosen = np.flatnonzero(kept)
    table = Table(numbers[chosen], starts[chosen], lengths[chosen])
    digest = xxhash.xxh3_128(table.lengths.data)
    digest.update(hashes[chosen].data)
    trained = _joined([file.trained for file in files], np.int32)
    return table, digest.hexdigest(), int(trained[chosen].sum())


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([*arrays, np.zeros(0, dtype)])


def _ranges(file_starts: np.ndarray, spans: Sequence[DocumentSpan]) -> np.ndarray:
    """The numbers of the spans' documents among those of all files behind each other, int64."""
    files, starts, stops = np.array(spans, np.int64).reshape(-1, 3).T
    counts = stops - starts
    before = np.cumsum(counts) - counts
    return np.repeat(file_starts[files] + starts - before, counts) + np.arange(int(counts.sum()))
