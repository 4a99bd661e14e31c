"""Format 1's optimizer states: each a vector [numel], the tensor row by row, in place of its full shape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from torch import Tensor

from evo_core.placement import Placed, Rectangle, Sizes


def flat_shape(shape: Sizes) -> Sizes:
    """The shape under which a tensor of `shape` lies in such a checkpoint."""
    return (math.prod(shape),)


def flat_parts(placed: Placed) -> Iterator[tuple[Rectangle, Tensor]]:
    """What a rank holds of a tensor, as stretches of its vector, each with the view [length] of the local tensor in
    which it lies: one for a share of rows, one a row for a share of columns."""
    shape = placed.placement.shape
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    for piece, view in placed.pieces():
        where = piece.where
        # Below the last dimension in which something is left out everything lies together.
        last = max((dim for dim, size in enumerate(where.sizes) if size < shape[dim]), default=0)
        start = sum(at * stride for at, stride in zip(where.offsets, strides, strict=True))
        for index in itertools.product(*map(range, where.sizes[:last])):
            part = view[index].view(-1)
            at = start + sum(n * stride for n, stride in zip(index, strides, strict=False))
            yield Rectangle((at,), (part.numel(),)), part
