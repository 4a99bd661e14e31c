"""Which documents repeat earlier ones, exactly or nearly.

Of documents that are the same, the first in the order of the dataset stays. A near duplicate is a document whose set
of shingles (runs of a few tokens) overlaps that of a document that stays by at least a threshold (Jaccard index). The
overlap is estimated by MinHash signatures (Broder 1997; made by rensa), of which 16 bits a number are kept (b-bit
MinHash, Li and König 2010). Documents are compared when they agree in one of several bands of their signatures
(locality-sensitive hashing, Leskovec et al., Mining of Massive Datasets, 3.4).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evo_core.data.shards.format import BinReader
from evo_core.errors import DataError

_BATCH_TOKENS = 1 << 20
_BATCH_ROWS = 1 << 16
_SEED = 42

# Chance that two documents right at the threshold are compared. Those that are nearer are compared more surely.
_LEAST_RECALL = 0.98


@dataclass(frozen=True)
class NearDuplicates:
    """What counts as nearly the same.

    Attributes:
        threshold: least share of shingles in common, 0 < threshold <= 1.
        permutations: numbers in a signature; the estimate's standard error is at most 0.5 / sqrt(permutations).
        shingle: tokens in a shingle.
    """

    threshold: float = 0.8
    permutations: int = 128
    shingle: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise DataError(f"must be above 0 and at most 1, not {self.threshold}", key="near.threshold")
        if self.permutations < 16 or self.shingle < 1:
            raise DataError("needs at least 16 permutations and a shingle of at least 1 token", key="near")

    def signatures(self, reader: BinReader) -> np.ndarray:
        """MinHash signatures of a file's documents, uint16 [documents, permutations].

        Raises:
            DataError: rensa is not installed, or a document is damaged.
        """
        try:
            from rensa import RMinHash
        except ImportError:
            raise DataError(
                "near duplicates cannot be found: rensa is not installed", hint="pip install 'evo-lm[data]'"
            ) from None
        rows = [np.zeros((0, self.permutations), np.uint16)]
        for shingles, offsets in self._shingles(reader):
            matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, self.permutations, _SEED)
            whole = np.array(matrix.to_rows(), np.uint32).reshape(-1, self.permutations)
            rows.append((whole & 0xFFFF).astype(np.uint16))
        return np.concatenate(rows)

    def bands(self) -> tuple[int, int]:
        """(bands, numbers in a band): the widest bands that miss few pairs at the threshold."""
        for width in range(self.permutations, 1, -1):
            bands = self.permutations // width
            if 1 - (1 - self.threshold**width) ** bands >= _LEAST_RECALL:
                return bands, width
        return self.permutations, 1

    def _shingles(self, reader: BinReader) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Hashes of shingles, uint64, and where each document's begin, of some documents at a time."""
        documents: list[np.ndarray] = []
        size = 0
        for document in range(len(reader)):
            documents.append(reader.tokens(document))
            size += len(documents[-1])
            if size >= _BATCH_TOKENS:
                yield self._hashes(documents)
                documents, size = [], 0
        if documents:
            yield self._hashes(documents)

    def _hashes(self, documents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """A hash for each run of `shingle` tokens within a document; a shorter document is one run."""
        ids = np.abs(np.concatenate(documents)).astype(np.uint64)
        lengths = np.array([len(document) for document in documents])
        counts = np.where(lengths > 0, np.maximum(lengths - self.shingle + 1, 1), 0)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        of = np.repeat(np.arange(len(documents)), counts)
        starts = np.arange(len(of)) - offsets[of] + (np.cumsum(lengths) - lengths)[of]
        hashes = np.zeros(len(of), np.uint64)
        for nth in range(self.shingle):
            within = nth < lengths[of]
            hashes[within] = _mixed(hashes[within] + ids[starts[within] + nth])
        return hashes, offsets.astype(np.uint64)


def exact_duplicates(hashes: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Which documents are copies of an earlier one, bool [documents].

    Args:
        hashes: uint64 [documents, 2], in the order of the dataset.
        active: bool [documents]; others are no copies and have none.
    """
    documents = np.flatnonzero(active)
    keys = np.ascontiguousarray(hashes[documents]).view([("high", np.uint64), ("low", np.uint64)]).ravel()
    _, first = np.unique(keys, return_index=True)
    copies = active.copy()
    copies[documents[first]] = False
    return copies


def near_duplicates(signatures: np.ndarray, active: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """Which documents nearly repeat an earlier one that stays, bool [documents].

    Args:
        signatures: uint16 [documents, permutations], in the order of the dataset; may be memory-mapped.
        active: bool [documents]; others are not compared.
    """
    compared = np.flatnonzero(active)
    buckets = _shared_buckets(signatures, compared, settings)
    removed = np.zeros(len(active), bool)
    staying: dict[int, list[int]] = {}
    for document, of_document in buckets:
        # Compared with those that stay alone: a chain of documents, each a little unlike the one before, would else
        # remove texts that nothing left is like.
        rivals = sorted({rival for bucket in of_document for rival in staying.get(bucket, ())})
        if rivals:
            overlap = (signatures[rivals] == signatures[document]).mean(axis=1)
            if overlap.max() >= settings.threshold:
                removed[document] = True
                continue
        for bucket in of_document:
            staying.setdefault(bucket, []).append(document)
    return removed


def _shared_buckets(
    signatures: np.ndarray, compared: np.ndarray, settings: NearDuplicates
) -> Iterator[tuple[int, list[int]]]:
    """(document, numbers of its buckets) in order, without the buckets that hold one document alone."""
    hashes = _band_hashes(signatures, compared, settings)
    documents, numbers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    first = 0
    for band in range(hashes.shape[1]):
        _, bucket, counts = np.unique(hashes[:, band], return_inverse=True, return_counts=True)
        shared = np.flatnonzero(counts[bucket] > 1)
        documents.append(compared[shared])
        numbers.append(bucket[shared] + first)
        first += len(counts)
    of, bucket = np.concatenate(documents), np.concatenate(numbers)
    order = np.argsort(of, kind="stable")
    of, bucket = of[order], bucket[order]
    starts = np.flatnonzero(np.diff(of, prepend=-1))
    for start, stop in itertools.pairwise([*starts.tolist(), len(of)]):
        yield int(of[start]), bucket[start:stop].tolist()


def _band_hashes(signatures: np.ndarray, documents: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """uint64 [len(documents), bands]; reads the signatures once, some rows at a time."""
    bands, width = settings.bands()
    hashes = np.zeros((len(documents), bands), np.uint64)
    for start in range(0, len(documents), _BATCH_ROWS):
        batch = slice(start, start + _BATCH_ROWS)
        rows = signatures[documents[batch], : bands * width].reshape(-1, bands, width)
        for column in range(width):
            hashes[batch] = _mixed(hashes[batch] + rows[:, :, column])
    return hashes


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014) after one step of its sequence; wraps at 2**64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
