"""Who writes what: each piece of a tensor is written once, and ranks that hold the same ones share the work."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping
from operator import itemgetter
from typing import NamedTuple

from torch import Tensor

from evo_core.placement import Placed, Ranks, Rectangle


class Part(NamedTuple):
    """Rows of a piece that one of the ranks that hold it writes.

    Attributes:
        writer: that rank.
        where: in the whole tensor.
        values: what this rank has there, a view of its local tensor [*where.sizes].
    """

    writer: int
    where: Rectangle
    values: Tensor


Cut = dict[str, dict[Rectangle, list[Part]]]
"""By name and piece, the parts that make it up."""

Parts = dict[str, list[tuple[Rectangle, Tensor]]]
"""By name, rectangles of the whole tensor and what is in them: views of local tensors."""


def cut(tensors: Mapping[str, Placed]) -> Cut:
    """Share out the pieces that a rank holds over all that hold them.

    All pieces that the same ranks share, laid end to end by name and by where they are in the whole tensor, are cut at
    borders of rows into one stretch for each rank, of equal bytes but for a row. So a piece is written in several parts
    only where a stretch ends in it, and every rank knows everybody's without asking. Ranks that share pieces must give
    them under the same names.
    """
    shared: dict[Ranks, list[tuple[str, Rectangle, Tensor]]] = defaultdict(list)
    for name, placed in tensors.items():
        for piece, view in placed.pieces():
            shared[piece.ranks].append((name, piece.where, view))
    parts: Cut = {name: {} for name in tensors}
    for ranks, pieces in shared.items():
        total = sum(view.nbytes for _, _, view in pieces)
        borders = [total * number // len(ranks) for number in range(len(ranks) + 1)]
        start = 0
        for name, where, view in sorted(pieces, key=itemgetter(0, 1)):
            stop = start + view.nbytes
            shares = parts[name][where] = []
            for number in range(bisect_right(borders, start) - 1, bisect_left(borders, stop)):
                stretch = _stretch(where, view, borders[number] - start, borders[number + 1] - start)
                if stretch is not None:
                    shares.append(Part(ranks[number], *stretch))
            start = stop
    return parts


def own_parts(tensors: Cut, rank: int) -> Parts:
    """What a rank writes."""
    return {
        name: [(part.where, part.values) for parts in pieces.values() for part in parts if part.writer == rank]
        for name, pieces in tensors.items()
    }


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
