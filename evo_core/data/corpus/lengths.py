"""The lengths of some documents of a ``.bin``, read from its meta when they are needed.

A meta of a billion documents is 16 GB, so what is kept of it is where its numbers lie. Runs of neighbours are read by
one call each and leave nothing mapped: what the kernel keeps of the file is page cache, which all processes of a
machine share and which it takes back when it needs the memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from evo_core.data.shards.format import map_meta, meta_path
from evo_core.errors import DataError


class LengthsPlace(NamedTuple):
    """Where a meta holds the tokens of its documents.

    Attributes:
        first: the byte that the number of the first document begins at.
        stride: bytes from one number to the next.
        type: of a number, as numpy writes it: ``<i8``.
    """

    first: int
    stride: int
    type: str

    @classmethod
    def of(cls, path: Path) -> tuple[Self, int]:
        """Where they lie in the meta of a ``.bin``, and how many there are.

        Raises:
            DataError: the meta is missing or not readable.
        """
        meta = map_meta(meta_path(path))
        if not isinstance(meta, np.memmap):  # of no document
            return cls(0, 8, "<i8"), 0
        column = (meta.shape[1] - 1) * meta.strides[1]  # numbers may lie by rows or, from other tools, by columns
        return cls(meta.offset + column, meta.strides[0], meta.dtype.str), len(meta)

    def read(self, path: Path, start: int, stop: int) -> np.ndarray:
        """Tokens of documents [start, stop), at least one of them, int64.

        Args:
            path: the ``.bin``.

        Raises:
            DataError: the meta is gone or shorter than it was.
        """
        numbers = np.dtype(self.type)
        size = (stop - start - 1) * self.stride + numbers.itemsize
        meta = meta_path(path)
        try:
            descriptor = os.open(meta, os.O_RDONLY | os.O_CLOEXEC)
            try:
                content = os.pread(descriptor, size, self.first + start * self.stride)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataError(f"it cannot be read any more ({error.strerror})", file=meta) from None
        if len(content) < size:
            raise DataError("it became shorter while it was in use", file=meta, hint="start again when nobody writes")
        return np.ndarray((stop - start,), numbers, content, strides=(self.stride,)).astype(np.int64)


def count_documents(path: Path) -> int:
    """How many documents the meta of a ``.bin`` lists, from its header alone.

    Raises:
        DataError: the meta is missing or not readable.
    """
    return len(map_meta(meta_path(path)))
