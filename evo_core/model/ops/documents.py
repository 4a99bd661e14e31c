"""Where the documents of a packed sequence begin and end."""

from __future__ import annotations

from functools import cached_property
from itertools import groupby, pairwise

from torch import Tensor


class Documents:
    """Where the documents of one packed sequence begin and end.

    Args:
        cu_seqlens: [n + 1] int32: 0, then the end of each document; the last is T. Repeated values
            (empty documents) are allowed, as padding to a fixed n.
        max_seqlen: the longest document, if known; else it is read from ``cu_seqlens``.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int | None = None) -> None:
        self.cu_seqlens = cu_seqlens
        self._max_seqlen = max_seqlen

    @cached_property
    def lengths(self) -> list[int]:
        """Length of each document that is not empty, in order (on CUDA this waits for the device)."""
        ends = self.cu_seqlens.tolist()
        return [end - start for start, end in pairwise(ends) if end > start]

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(how many, their length) of neighbouring documents that are equally long, in order."""
        return [(len(list(equal)), length) for length, equal in groupby(self.lengths)]

    @cached_property
    def max_seqlen(self) -> int:
        return max(self.lengths) if self._max_seqlen is None else self._max_seqlen
