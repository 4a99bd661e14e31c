"""From how many documents on they come in another order, and the versions of both.

Up to 2^26 documents an epoch's permutations and running sums are kept whole (`order`). There a process needs 4.9 GB and
a minute to its first batch (``python -m benchmarks.order --whole``, two busy cores), and twice that for twice as many:
hardly a run can have been there, and those below go on as they were. Above it next to nothing is kept (`large_order`).
Which of them a run is in is part of the digest of its data, and of the key of a step as far as the number of documents
is known when it is planned.
"""

from __future__ import annotations

from typing import NamedTuple

ORDER_VERSION = 2
"""Raised when the order of few documents changes for the same seed and data."""

LARGE_ORDER_VERSION = 3
"""The same for the order of many."""


class Scale(NamedTuple):
    """From how many documents on the order is that of many, and its units.

    Attributes:
        documents: a dataset with more of them, short ones too, is in the order of many.
        block: documents that stay in one group.
        group: blocks of a group.
        window: most packs of a window.
    """

    documents: int = 1 << 26
    block: int = 1 << 8
    group: int = 1 << 11
    window: int = 1 << 20


SCALE = Scale()
"""Of every run; another scale is for tests alone, since another order comes of it."""
