"""Tensors that are read from their file when they are needed, so that a conversion holds one of them at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lazy:
    """A tensor in a file, or what is made of such tensors.

    Attributes:
        shape, dtype: known without reading.
        read: gives the tensor, on the CPU; it may be a view of a mapped file and must not be written to.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def then(self, change: Callable[[Tensor], Tensor]) -> Lazy:
        """The tensor after a change of shape or order; the new shape is found by trying it on a tensor without data."""
        changed = change(torch.empty(self.shape, dtype=self.dtype, device="meta"))
        return Lazy(tuple(changed.shape), changed.dtype, lambda: change(self.read()))

    def to(self, dtype: torch.dtype) -> Lazy:
        """The tensor in another floating-point type; rounded where that is narrower."""
        return self if dtype == self.dtype else replace(self, dtype=dtype, read=lambda: self.read().to(dtype))


def held(tensor: Tensor) -> Lazy:
    """A tensor of any shape that is there already: in memory, or in a mapped file."""
    return Lazy(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def joined(parts: Sequence[Lazy], join: Callable[[list[Tensor]], Tensor]) -> Lazy:
    """What `join` makes of several tensors of any shapes; the result's is found by trying it without data."""
    shapes = [torch.empty(part.shape, dtype=part.dtype, device="meta") for part in parts]
    result = join(shapes)
    return Lazy(tuple(result.shape), result.dtype, lambda: join([part.read() for part in parts]))


def stacked(parts: Sequence[Lazy], dim: int) -> Lazy:
    """Tensors one behind the other along a dimension."""
    return parts[0] if len(parts) == 1 else joined(parts, lambda tensors: torch.cat(tensors, dim))
