"""Tensors that are read from their file when they are needed, whole or a part of them.

So a conversion holds one tensor at a time, and a rank that holds a part of a model reads that part alone: a rectangle
that is asked for is traced back, through whatever the tensor is made of, to rectangles of what lies in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from evo_core.placement import Rectangle

Rearrange = Callable[[list[Tensor]], Tensor]
"""Makes one tensor of the rows of several: takes them in another order, or leaves some out. It does the same whatever
a row is, be it a row of a matrix, an element of a bias or a number; so told numbers, it says which row goes where."""


@dataclass(frozen=True)
class Lazy:
    """A tensor in a file, or what is made of such tensors.

    Attributes:
        shape, dtype: known without reading.
        source: reads a rectangle that is not empty: a tensor of its sizes, on the CPU. It may be a view of a mapped
            file, and must not be written to.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    source: Callable[[Rectangle], Tensor]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self._whole.numel * self.dtype.itemsize

    def read(self) -> Tensor:
        """All of it, as `part` gives it."""
        return self.part(self._whole)

    def part(self, where: Rectangle) -> Tensor:
        """A rectangle of it, on the CPU, of which no more than it needs is read; it must not be written to."""
        if not where.numel:
            return torch.empty(where.sizes, dtype=self.dtype)
        return self.source(where).to(self.dtype)

    def then(self, change: Callable[[Tensor], Tensor]) -> Lazy:
        """The tensor with its rows in another order, or some of them; see `Rearrange`."""
        return joined([self], lambda tensors: change(tensors[0]))

    def to(self, dtype: torch.dtype) -> Lazy:
        """The tensor in another floating-point type; rounded where that is narrower."""
        return self if dtype == self.dtype else Lazy(self.shape, dtype, self.part)

    @property
    def _whole(self) -> Rectangle:
        return Rectangle((0,) * len(self.shape), self.shape)


def held(tensor: Tensor) -> Lazy:
    """A tensor of any shape that is there already: in memory, or in a mapped file."""
    return Lazy(tuple(tensor.shape), tensor.dtype, lambda where: where.of(tensor))


def joined(parts: Sequence[Lazy], join: Rearrange) -> Lazy:
    """What `join` makes of several tensors of any shapes; the result's is found by trying it without data."""
    shapes = [torch.empty(part.shape, dtype=part.dtype, device="meta") for part in parts]
    result = join(shapes)
    ends = [0, *accumulate(part.shape[0] for part in parts)]  # of the rows, numbered through all parts

    def read(where: Rectangle) -> Tensor:
        top = where.offsets[0]
        numbers = join([torch.arange(*span) for span in pairwise(ends)])[top : top + where.sizes[0]]
        made: Tensor | None = None
        for part, (start, end) in zip(parts, pairwise(ends), strict=True):
            if not (mine := (numbers >= start) & (numbers < end)).any():
                continue
            rows = _rows(part, numbers[mine] - start, where)
            if mine.all():
                return rows
            made = torch.empty(where.sizes, dtype=result.dtype) if made is None else made
            made[_index(mine.nonzero()[:, 0])] = rows.to(result.dtype)
        assert made is not None  # every number is of one of the parts
        return made

    return Lazy(tuple(result.shape), result.dtype, read)


def stacked(parts: Sequence[Lazy], dim: int) -> Lazy:
    """Tensors one behind the other along a dimension."""
    if len(parts) == 1:
        return parts[0]
    result = torch.cat([torch.empty(part.shape, dtype=part.dtype, device="meta") for part in parts], dim)
    ends = [0, *accumulate(part.shape[dim] for part in parts)]

    def read(where: Rectangle) -> Tensor:
        low, high = where.offsets[dim], where.offsets[dim] + where.sizes[dim]
        met = [
            part.part(where.along(dim, max(low, start) - start, min(high, end) - max(low, start)))
            for part, (start, end) in zip(parts, pairwise(ends), strict=True)
            if max(low, start) < min(high, end)
        ]
        return met[0] if len(met) == 1 else torch.cat(met, dim)

    return Lazy(tuple(result.shape), result.dtype, read)


def _rows(tensor: Lazy, numbers: Tensor, where: Rectangle) -> Tensor:
    """Rows [numbers] of a tensor, of the columns that `where` has. From the first to the last they are read in one:
    of a mapped file that is a view, of which only what is taken is touched."""
    first, last = int(numbers.min()), int(numbers.max())
    return tensor.part(where.along(0, first, last - first + 1))[_index(numbers - first)]


def _index(numbers: Tensor) -> slice | Tensor:
    """Row numbers as an index; as a slice, which is a view, where one follows the other."""
    consecutive = bool((numbers.diff() == 1).all())
    return slice(int(numbers[0]), int(numbers[-1]) + 1) if consecutive else numbers
