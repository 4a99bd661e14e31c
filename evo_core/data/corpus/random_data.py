"""Random documents, for runs without data: ``data.train_folder: null``.

InternEvo's dummy set: each document says n and r and then counts r times from 0 to n - 1, so there is
something to learn.
"""

from __future__ import annotations

import numpy as np

TRAIN_DOCUMENTS = 1_000_000
VALID_DOCUMENTS = 500


class RandomDocuments:
    """Documents ``[n, r, 0, 1, …, n - 1, 0, 1, …]`` with random 1 <= n < 30 and 10 <= r < 200.

    Args:
        documents: how many.
        seq_len: documents are cut to this length.
        fixed_length: True goes on counting until seq_len is reached.
        vocab_size: ids are taken modulo it, so that the smallest models can be tried.
        seed: another seed is another set.
    """

    def __init__(self, documents: int, *, seq_len: int, fixed_length: bool, vocab_size: int, seed: int = 1999) -> None:
        random = np.random.RandomState(seed)
        self._n = random.randint(1, 30, documents)
        self._r = random.randint(10, 200, documents)
        self._vocab_size = vocab_size
        counted = np.full(documents, seq_len, np.int64) if fixed_length else 2 + self._n * self._r
        self.lengths: np.ndarray = np.minimum(counted, seq_len).astype(np.int64)

    def read(self, documents: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """See `Documents`; int64 [stops[i] - starts[i]]."""
        spans = zip(documents.tolist(), starts.tolist(), stops.tolist(), strict=True)
        return [self._tokens(document, start, stop) for document, start, stop in spans]

    def _tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        n, r = self._n[document], self._r[document]
        ids = np.arange(start - 2, stop - 2) % n
        if start < 2:
            head = np.array([n, r])[start : min(stop, 2)]
            ids[: len(head)] = head
        return ids % self._vocab_size
