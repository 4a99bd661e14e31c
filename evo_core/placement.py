"""What a rank holds of each tensor: which rectangles of the whole one, where they lie, and which ranks share them.

Whoever has to know how a tensor is cut reads it here (first weights, gradient sums, the global norm, checkpoints), and
nobody asks by which kind of parallelism it was cut. The cuts compose, model parallelism's first and ZeRO's of what that
left::

    Placement.whole(shape, ranks)                        all of it, on each of the ranks
    Placement.cut(shape, 1, t, 4, ranks)                 the t-th of four parts of the columns
    Placement.fused(shape, 0, (q, k, v), t, 4, ranks)    the t-th of four parts of q, of k and of v, one behind another
    placement.share(z, 8, ranks)                         of any of these, the z-th of eight parts of the rows

A tensor of r dimensions has offsets and sizes of length r, in elements. Ranks are global ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

Sizes = tuple[int, ...]
Ranks = tuple[int, ...]


def span(size: int, index: int, count: int) -> tuple[int, int]:
    """Begin and end of the index-th of `count` parts of `size` rows: ``ceil(size / count)`` each, the last ones less.

    Raises:
        ValueError: there is no such part.
    """
    if not 0 <= index < count:
        raise ValueError(f"part {index} of {count}")
    width = -(-size // count)
    return min(size, index * width), min(size, (index + 1) * width)


@dataclass(frozen=True, order=True)
class Rectangle:
    """A rectangle of a whole tensor, at `offsets` and of `sizes`."""

    offsets: Sizes
    sizes: Sizes

    @property
    def numel(self) -> int:
        """Elements in it."""
        return math.prod(self.sizes)

    def of(self, whole: Tensor) -> Tensor:
        """This part of a whole tensor (of its shape), as a view [*sizes]."""
        return _view(whole, self.offsets, self.sizes)

    def along(self, dim: int, at: int, size: int) -> Rectangle:
        """The rectangle that lies at `at` along a dimension, `size` long there, and elsewhere as this one."""
        return Rectangle(_with(self.offsets, dim, at), _with(self.sizes, dim, size))

    def overlaps(self, other: Rectangle) -> bool:
        """Whether the two have an element in common."""
        pairs = zip(self.offsets, self.sizes, other.offsets, other.sizes, strict=True)
        return all(max(a, b) < min(a + m, b + n) for a, m, b, n in pairs)

    def __str__(self) -> str:
        return f"[{', '.join(f'{at}:{at + size}' for at, size in zip(self.offsets, self.sizes, strict=True))}]"


def tiling_fault(shape: Sizes, rectangles: Iterable[Rectangle]) -> str | None:
    """What keeps rectangles from being a whole tensor, each element in just one: they reach out, overlap or leave a
    hole. None where nothing does; empty ones do not count."""
    active: list[Rectangle] = []
    total = 0
    for rectangle in sorted(rectangle for rectangle in rectangles if rectangle.numel):
        if any(at + size > whole for at, size, whole in zip(rectangle.offsets, rectangle.sizes, shape, strict=True)):
            return f"{rectangle} reaches out of {list(shape)}"
        # They come in the order of their first rows, so one that ended above this one is met no more.
        top = rectangle.offsets[:1]
        active = [before for before in active if not top or before.offsets[0] + before.sizes[0] > top[0]]
        for before in active:
            if before.overlaps(rectangle):
                return f"{before} and {rectangle} overlap"
        active.append(rectangle)
        total += rectangle.numel
    missing = math.prod(shape) - total
    return f"{missing} of {math.prod(shape)} elements are missing" if missing else None


@dataclass(frozen=True)
class Piece:
    """A rectangle that a rank holds.

    Attributes:
        where: in the whole tensor.
        at: where it begins in the local tensor, in which it has the same sizes.
        ranks: all that hold this very rectangle, ascending. They must have the same numbers in it.
    """

    where: Rectangle
    at: Sizes
    ranks: Ranks

    @property
    def owner(self) -> int:
        """The first of the ranks that hold it, for what one of them does for all."""
        return self.ranks[0]

    def of(self, local: Tensor) -> Tensor:
        """This piece of the local tensor (of the placement's local shape), as a view [*where.sizes]."""
        return _view(local, self.at, self.where.sizes)


class Span(NamedTuple):
    """Rows `start` to `stop` of a whole tensor (or columns, of another dimension), and the ranks that hold them."""

    start: int
    stop: int
    ranks: Sequence[int]


@dataclass(frozen=True)
class Placement:
    """What this rank holds of one tensor.

    Attributes:
        shape: of the whole tensor.
        local_shape: of the local one; pieces cover it.
        pieces: those that are not empty, in the order in which they lie in the local tensor.
    """

    shape: Sizes
    local_shape: Sizes
    pieces: tuple[Piece, ...]

    @classmethod
    def whole(cls, shape: Sequence[int], ranks: Iterable[int]) -> Placement:
        """All of a tensor, on each of the ranks."""
        shape = tuple(shape)
        piece = Piece(Rectangle((0,) * len(shape), shape), (0,) * len(shape), _ascending(ranks))
        return cls(shape, shape, (piece,) if math.prod(shape) else ())

    @classmethod
    def cut(cls, shape: Sequence[int], dim: int, index: int, count: int, ranks: Iterable[int]) -> Placement:
        """The index-th of `count` parts along a dimension, held by `ranks` alike."""
        return cls.fused(shape, dim, (shape[dim],), index, count, ranks)

    @classmethod
    def fused(
        cls, shape: Sequence[int], dim: int, segments: Sequence[int], index: int, count: int, ranks: Iterable[int]
    ) -> Placement:
        """The index-th of `count` parts of each segment of a tensor that is several in one, such as q, k and v.

        Args:
            dim: along it lie the segments, and the parts in the local tensor.
            segments: their sizes, which add up to the tensor's.
            ranks: which hold the same parts.

        Raises:
            ValueError: they do not add up.
        """
        ranks, spans, start = _ascending(ranks), [], 0
        for size in segments:
            low, high = span(size, index, count)
            spans.append(Span(start + low, start + high, ranks))
            start += size
        if start != shape[dim]:
            raise ValueError(f"segments {list(segments)} of a tensor {list(shape)} cut along {dim}")
        return cls.joined(shape, dim, spans)

    @classmethod
    def joined(cls, shape: Sequence[int], dim: int, spans: Iterable[Span]) -> Placement:
        """Any spans along a dimension, one behind another in the local tensor; each may have other ranks that hold it
        too, as heads have that are on several ranks."""
        shape, at = tuple(shape), 0
        pieces: list[Piece] = []
        for start, stop, ranks in _merged(spans):
            origin = (0,) * len(shape)
            where = Rectangle(_with(origin, dim, start), _with(shape, dim, stop - start))
            if where.numel:
                pieces.append(Piece(where, _with(origin, dim, at), _ascending(ranks)))
            at += stop - start
        return cls(shape, _with(shape, dim, at), tuple(pieces))

    @property
    def numel(self) -> int:
        """Elements of the local tensor."""
        return math.prod(self.local_shape)

    @property
    def nothing(self) -> Placement:
        """No row of the local tensor."""
        return Placement(self.shape, (0, *self.local_shape[1:]), ())

    def share(self, index: int, count: int, ranks: Iterable[int]) -> Placement:
        """The index-th of `count` parts of the local tensor's rows, by `span`; a scalar is one row.

        Args:
            ranks: those that take the same part of what they hold. Of the ranks that share a piece, these share its
                part.
        """
        if not self.local_shape:
            parts = [replace(piece, ranks=_common(piece.ranks, ranks)) for piece in self.pieces if index == 0]
            return Placement(self.shape, () if parts else (0,), tuple(parts))
        start, stop = span(self.local_shape[0], index, count)
        clipped = (_rows_of(piece, start, stop, ranks) for piece in self.pieces)
        rows = tuple(piece for piece in clipped if piece is not None)
        return Placement(self.shape, (stop - start, *self.local_shape[1:]), rows)


@dataclass(frozen=True)
class Placed:
    """A local tensor with its placement: a named value of a checkpoint, say.

    Raises:
        ValueError: the tensor does not have the placement's local shape.
    """

    local: Tensor
    placement: Placement

    def __post_init__(self) -> None:
        if tuple(self.local.shape) != self.placement.local_shape:
            raise ValueError(f"{list(self.local.shape)} in place of {list(self.placement.local_shape)}")

    def pieces(self) -> Iterator[tuple[Piece, Tensor]]:
        """Each piece, and the view [*piece.where.sizes] of the local tensor in which it lies."""
        for piece in self.placement.pieces:
            yield piece, piece.of(self.local)

    def fill(self, whole: Tensor) -> None:
        """Copy what belongs here from the whole tensor [*placement.shape]."""
        for piece, view in self.pieces():
            view.copy_(piece.where.of(whole))


@dataclass(frozen=True)
class Held:
    """What the ranks that share a layer hold of one of its parameters: the record that a cut model carries as `held`.

    Attributes:
        on_each: the placement on each of these ranks, in their order.
        index: which of them is this rank's.
        partial: whether ranks that hold the same piece each see a part of its gradient, which is then the sum over
            them; else each sees all of it.
        on_ends: whether the first and the last stage of a pipeline hold it, each of which sees a part of its gradient.
        gathered: whether the ranks are those of the weight axis, which fetch it when it is used; else of the tensor
            axis.
        dealt: whether it is of an expert that some of the data ranks have, and others not.
    """

    on_each: tuple[Placement, ...]
    index: int
    partial: bool
    on_ends: bool = False
    gathered: bool = False
    dealt: bool = False

    @property
    def placement(self) -> Placement:
        """This rank's."""
        return self.on_each[self.index]

    def at_both_ends(self, distance: int) -> Held:
        """The same for a parameter that the other end of the pipeline holds too, so many ranks from here."""

        def both(placement: Placement) -> Placement:
            pieces = (
                replace(piece, ranks=_ascending([*piece.ranks, *(rank + distance for rank in piece.ranks)]))
                for piece in placement.pieces
            )
            return replace(placement, pieces=tuple(pieces))

        return replace(self, on_each=tuple(map(both, self.on_each)), on_ends=True)


@dataclass(frozen=True)
class Shards:
    """What a rank holds of a model whose parameters data ranks share (fsdp): the record that it carries as `shards`.

    Attributes:
        placements: of each parameter's share, by name.
        dtypes: in which each is computed with and saved; the share is in float32 or wider.
    """

    placements: Mapping[str, Placement]
    dtypes: Mapping[str, torch.dtype]


def placements_of(model: nn.Module) -> dict[str, Placement]:
    """What this rank holds of each parameter of a model that is cut, by name; nothing for one that is whole."""
    if (shards := shards_of(model)) is not None:
        return dict(shards.placements)
    held: Mapping[str, Held] = getattr(model, "held", {})
    return {name: each.placement for name, each in held.items()}


def shards_of(model: nn.Module) -> Shards | None:
    """The record of a model whose parameters data ranks share; None of another."""
    return getattr(model, "shards", None)


def dtypes_of(model: nn.Module) -> dict[str, torch.dtype]:
    """The type in which each parameter is computed with, by name."""
    if (shards := shards_of(model)) is not None:
        return dict(shards.dtypes)
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type in which a model computes, as its first parameter says."""
    return next(iter(dtypes_of(model).values()))


def local_of(tensor: Tensor) -> Tensor:
    """What is here of a tensor, of which others may have the rest (a DTensor): the memory itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _view(tensor: Tensor, offsets: Sizes, sizes: Sizes) -> Tensor:
    for dim, (at, size) in enumerate(zip(offsets, sizes, strict=True)):
        tensor = tensor.narrow(dim, at, size)
    return tensor


def _with(sizes: Sizes, dim: int, size: int) -> Sizes:
    return (*sizes[:dim], size, *sizes[dim + 1 :])


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Spans of which one goes on where the one before it ended, on the same ranks, as one."""
    merged: list[Span] = []
    for each in spans:
        before = merged[-1] if merged else None
        if before is not None and before.stop == each.start and _ascending(before.ranks) == _ascending(each.ranks):
            merged[-1] = before._replace(stop=each.stop)
        else:
            merged.append(each)
    return merged


def _rows_of(piece: Piece, start: int, stop: int, ranks: Iterable[int]) -> Piece | None:
    """What local rows `start` to `stop` have of a piece, if anything."""
    top, height = piece.at[0], piece.where.sizes[0]
    low, high = max(start, top), min(stop, top + height)
    if low >= high:
        return None
    offsets = (piece.where.offsets[0] + low - top, *piece.where.offsets[1:])
    rows = Rectangle(offsets, (high - low, *piece.where.sizes[1:]))
    return Piece(rows, (low - start, *piece.at[1:]), _common(piece.ranks, ranks))


def _ascending(ranks: Iterable[int]) -> Ranks:
    """Ranks in their one order.

    Raises:
        ValueError: there are none.
    """
    if not (found := tuple(sorted(set(ranks)))):
        raise ValueError("a piece that no rank holds")
    return found


def _common(holders: Ranks, ranks: Iterable[int]) -> Ranks:
    return _ascending(set(holders) & set(ranks))
