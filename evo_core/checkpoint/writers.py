"""Who writes what: each piece of a tensor is written once, and ranks that hold the same ones share the work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from operator import itemgetter

from torch import Tensor

from evo_core.placement import Placed, Ranks, Rectangle

Parts = dict[str, list[tuple[Rectangle, Tensor]]]
"""By name, rectangles of the whole tensor and what is in them: views of local tensors."""


def own_parts(tensors: Mapping[str, Placed], rank: int) -> Parts:
    """What a rank writes of the tensors that it holds.

    All pieces that the same ranks share, laid end to end by name and by where they are in the whole tensor, are cut at
    borders of rows into one stretch for each rank, of equal bytes but for a row. So a piece is written in several parts
    only where a stretch ends in it, and every rank knows its own without asking. Ranks that share pieces must give them
    under the same names.
    """
    shared: dict[Ranks, list[tuple[str, Rectangle, Tensor]]] = defaultdict(list)
    for name, placed in tensors.items():
        for piece, view in placed.pieces():
            shared[piece.ranks].append((name, piece.where, view))
    parts: Parts = {name: [] for name in tensors}
    for ranks, pieces in shared.items():
        index, total = ranks.index(rank), sum(view.nbytes for _, _, view in pieces)
        start, stop = total * index // len(ranks), total * (index + 1) // len(ranks)
        for name, where, view in sorted(pieces, key=itemgetter(0, 1)):
            if (part := _stretch(where, view, start, stop)) is not None:
                parts[name].append(part)
            start, stop = start - view.nbytes, stop - view.nbytes
    return parts


def _stretch(where: Rectangle, view: Tensor, start: int, stop: int) -> tuple[Rectangle, Tensor] | None:
    """The rows of a piece that begin in bytes `start` to `stop` of it (which may lie outside); a scalar is one row."""
    if not where.sizes:
        return (where, view) if start <= 0 < stop else None
    rows = where.sizes[0]
    first, end = (min(max(-(-byte * rows // view.nbytes), 0), rows) for byte in (start, stop))
    if first >= end:
        return None
    offsets, sizes = (where.offsets[0] + first, *where.offsets[1:]), (end - first, *where.sizes[1:])
    return Rectangle(offsets, sizes), view[first:end]
