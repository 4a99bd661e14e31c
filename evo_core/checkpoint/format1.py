"""Format 1's optimizer states: each a vector [numel], the tensor row by row, in place of its full shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from evo_core.placement import Placed, Rectangle, Sizes

Stretches = dict[str, list[tuple[Rectangle, Tensor]]]
"""By name, stretches [start:stop] of vectors, each with the tensor [stop - start] that it is read into."""


def flat_shape(shape: Sizes) -> Sizes:
    """The shape under which a tensor of `shape` lies in such a checkpoint."""
    return (math.prod(shape),)


def turns(tensors: Mapping[str, Placed]) -> Iterator[Stretches]:
    """What is to be read for tensors of any shape, in turns; whoever asks for the next has read the one before.

    Pieces of whole rows are one stretch each, and come all at once. Of a piece that leaves out columns each row would
    be one, and each be looked up and cut out by itself: its rows are read whole, one piece at a time, and then cut.
    """
    cut = []
    whole: Stretches = {name: [] for name in tensors}
    for name, placed in tensors.items():
        shape = placed.placement.shape
        for piece, view in placed.pieces():
            if piece.where.sizes[1:] == shape[1:]:
                whole[name].append((_stretch(piece.where, shape), view.view(-1)))
            else:
                cut.append((name, piece.where, shape, view))
    yield whole
    for name, where, shape, view in cut:
        rows = torch.empty(where.sizes[0], *shape[1:], dtype=view.dtype)
        yield {name: [(_stretch(where, shape), rows.view(-1))]}
        view.copy_(Rectangle((0, *where.offsets[1:]), where.sizes).of(rows))


def _stretch(where: Rectangle, shape: Sizes) -> Rectangle:
    """Where the rows of a rectangle lie in the vector, with all their columns; a scalar is one row."""
    row = math.prod(shape[1:])
    top, rows = (where.offsets[0], where.sizes[0]) if shape else (0, 1)
    return Rectangle((top * row,), (rows * row,))
