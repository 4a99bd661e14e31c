"""Documents of one data type as a loader sees them: their lengths, and tokens at random access."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from evo_core.data.token_files import TokenFile


class Documents(Protocol):
    """Tokenized documents, numbered from 0.

    Attributes:
        lengths: int64 [documents], tokens of each.
    """

    @property
    def lengths(self) -> np.ndarray: ...

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a document, any integer type; may be a view."""


class DocumentSet:
    """The documents of several token files as one sequence, without those that are too short.

    Args:
        files: their order is the documents' order.
        min_length: documents with fewer tokens are left out; empty ones always.
    """

    def __init__(self, files: Sequence[TokenFile], *, min_length: int = 0) -> None:
        self._files = list(files)
        self._file_starts = np.cumsum([0, *(len(file.ids) for file in self._files)])
        starts = [file.starts[:-1] + base for file, base in zip(self._files, self._file_starts, strict=False)]
        lengths = [np.diff(file.starts) for file in self._files]
        all_starts = np.concatenate([*starts, np.zeros(0, np.int64)])
        all_lengths = np.concatenate([*lengths, np.zeros(0, np.int64)])
        kept = all_lengths >= max(min_length, 1)
        self._starts = all_starts[kept]
        self.lengths = all_lengths[kept]

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a document, int32, a view of its file."""
        at = int(self._starts[document])
        file = int(np.searchsorted(self._file_starts, at, side="right")) - 1
        at -= int(self._file_starts[file])
        return self._files[file].ids[at + start : at + stop]
