"""Which rank of a ZeRO axis owns what of a parameter, and where that lies in a bucket.

A bucket lays shares out rank-major, as rows of which row z is all that rank z owns. There are two ways to share:

- by rows (`Slot`): of R rows, rank z owns ``ceil(R / Z)`` from ``z ceil(R / Z)`` on, or what is left. So its share is
  one rectangle of the whole tensor, which a checkpoint can name. The elements of a vector are its rows; where there are
  fewer rows than ranks, the last ranks own nothing of it. In the bucket's columns a parameter lies as it does in
  memory, row after row, padding in the end.
- whole (`WholeSlot`): one rank owns all of it, for updates that need a matrix as a whole, and the others nothing. They
  are dealt out so that the ranks own about as many elements.

Gradients of a bucket are one matrix. Where the rows are alike in length it is [Z, width], padding at the end of a
parameter's columns; where they are not, as with more ranks than matrices, it is [1, elements], one row behind another:
it has no room for what a rank does not own.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evo_core.optim.groups import ParameterGroup
from evo_core.placement import Placed, Placement, span

Named = tuple[str, nn.Parameter]


@dataclass
class Slot:
    """The columns of one parameter in its bucket, every rank owning some of its rows.

    Attributes:
        start: first column of the parameter's shares.
        width: columns: the elements of ``ceil(R / Z)`` of its R rows.
        share: what of it this rank owns.
        filled: whether a gradient has been added since the last reduction.
    """

    name: str
    param: nn.Parameter
    start: int
    width: int
    share: Placement
    filled: bool = False

    def owned(self, zero_rank: int) -> int:
        """Elements of the parameter, padding not counted, that a rank owns."""
        return max(0, min(self.width, self.param.numel() - zero_rank * self.width))

    def own(self, flat: Tensor, zero_rank: int) -> Tensor:
        """Of the whole parameter [numel] what a rank owns."""
        return flat[zero_rank * self.width :][: self.owned(zero_rank)]

    def placed(self, row: Tensor) -> Placed:
        """This rank's share, without padding, of what lies in its row [width of the bucket]."""
        flat = row[self.start : self.start + self.share.numel]
        return Placed(flat.view(self.share.local_shape), self.share)

    def put(self, matrix: Tensor, flat: Tensor, *, add: bool = False) -> None:
        """Write `flat` [numel] into the parameter's columns of a [Z, width] matrix, or add it to them."""
        for there, here in self._pieces(matrix, flat):
            there.add_(here) if add else there.copy_(here)

    def clear(self, matrix: Tensor) -> None:
        """Write zeros where `put` would write."""
        matrix[:, self.start : self.start + self.width].zero_()

    def take(self, columns: Tensor, start: int) -> None:
        """Write what some columns of the bucket hold of the parameter into it.

        Args:
            columns: [Z, n], from the bucket's column `start` on.
        """
        low, high = self._span(columns, start)
        here = columns[:, low - start : high - start]
        first, last, flat = low - self.start, high - self.start, self.param.data.view(-1)
        rows, rest = divmod(flat.numel(), self.width)
        flat[: rows * self.width].view(rows, self.width)[:, first:last].copy_(here[:rows])
        if first < (end := min(rest, last)):  # of the row in which the parameter ends
            flat[rows * self.width + first : rows * self.width + end].copy_(here[rows, : end - first])

    def _span(self, columns: Tensor, start: int) -> tuple[int, int]:
        """The columns of the bucket that are the parameter's, of those from `start` on."""
        return max(start, self.start), min(start + columns.shape[1], self.start + self.width)

    def _pieces(self, matrix: Tensor, flat: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Matching views: the full shares, and the one in which the parameter ends."""
        rows, rest = divmod(flat.numel(), max(self.width, 1))
        columns = matrix[:, self.start : self.start + self.width]
        yield columns[:rows], flat[: rows * self.width].view(rows, self.width)
        if rest:
            yield columns[rows, :rest], flat[rows * self.width :]


@dataclass
class WholeSlot(Slot):
    """The columns of one parameter in the row of the one rank that owns it.

    Attributes:
        width: columns: all of its elements.
        owner: the rank's number along the ZeRO axis.
        row, column: where it begins in the matrix of gradients.
    """

    owner: int = 0
    row: int = 0
    column: int = 0

    def owned(self, zero_rank: int) -> int:
        """See `Slot`."""
        return self.width if zero_rank == self.owner else 0

    def own(self, flat: Tensor, zero_rank: int) -> Tensor:
        """See `Slot`."""
        return flat[: self.owned(zero_rank)]

    def put(self, matrix: Tensor, flat: Tensor, *, add: bool = False) -> None:
        """See `Slot`."""
        there = self._row(matrix)
        there.add_(flat) if add else there.copy_(flat)

    def clear(self, matrix: Tensor) -> None:
        """See `Slot`."""
        self._row(matrix).zero_()

    def take(self, columns: Tensor, start: int) -> None:
        """See `Slot`."""
        low, high = self._span(columns, start)
        here = columns[self.row, low - start : high - start]
        self.param.data.view(-1)[low - self.start : high - self.start].copy_(here)

    def _row(self, matrix: Tensor) -> Tensor:
        return matrix[self.row, self.column : self.column + self.width]


def by_rows(group: ParameterGroup, parameters: Sequence[Named]) -> tuple[list[Slot], list[int]]:
    """The slots of parameters that are shared by their rows, and the length of each rank's row: that of all."""
    slots, width = [], 0
    for name, param in parameters:
        _, first_end = span(rows := param.shape[0] if param.dim() else 1, 0, group.zero.size)
        columns = first_end * param.numel() // max(rows, 1)
        slots.append(Slot(name, param, width, columns, group.share(name)))
        width += columns
    return slots, [width] * group.zero.size


def as_whole(group: ParameterGroup, parameters: Sequence[Named]) -> tuple[list[Slot], list[int]]:
    """The slots of parameters that are dealt out as a whole, and the length of each rank's row.

    In a rank's row they lie in the order that they are given in.
    """
    zero = group.zero
    owners, lengths = dealt([param.numel() for _, param in parameters], zero.size)
    even = min(lengths) == max(lengths)
    before = [0, *itertools.accumulate(lengths)]
    slots: list[Slot] = []
    filled = [0] * zero.size
    for (name, param), owner in zip(parameters, owners, strict=True):
        share, start = group.whole_share(name, mine=owner == zero.rank), filled[owner]
        row, column = (owner, start) if even else (0, before[owner] + start)
        slots.append(WholeSlot(name, param, start, param.numel(), share, owner=owner, row=row, column=column))
        filled[owner] += param.numel()
    return slots, lengths


def dealt(sizes: Sequence[int], ranks: int) -> tuple[list[int], list[int]]:
    """The rank that gets each of some things of these sizes, and what each rank has got.

    The larger ones first, each to the rank that has least by then: ranks differ by the largest one at most.
    """
    owners, least = [0] * len(sizes), [(0, rank) for rank in range(ranks)]
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        load, owners[number] = least[0]
        heapq.heapreplace(least, (load + sizes[number], owners[number]))
    loads = [0] * ranks
    for load, rank in least:
        loads[rank] = load
    return owners, loads


def filled_up(parameters: Iterable[Named], size: int) -> list[list[Named]]:
    """Parameters in parts of one type and at most `size` elements (or one larger parameter), in their order."""
    by_dtype: dict[torch.dtype, list[list[Named]]] = {}
    filled: dict[torch.dtype, int] = {}
    for name, param in parameters:
        parts = by_dtype.setdefault(param.dtype, [[]])
        if parts[-1] and filled[param.dtype] + param.numel() > size:
            parts.append([])
            filled[param.dtype] = 0
        parts[-1].append((name, param))
        filled[param.dtype] = filled.get(param.dtype, 0) + param.numel()
    return [part for parts in by_dtype.values() for part in parts]


def evenly_dealt(parameters: Iterable[Named], size: int, ranks: int) -> list[list[Named]]:
    """Parameters in parts of one type that can be dealt out over ranks as a whole as evenly as may be.

    A part has as many parameters of one shape for each rank, of at most `size` elements together or one for each. Those
    that are left over of all shapes are the last part, the only one of which ranks get unlike shares: they differ by
    the largest of them at most.
    """
    by_shape: dict[tuple[torch.dtype, torch.Size], list[Named]] = {}
    for name, param in parameters:
        by_shape.setdefault((param.dtype, param.shape), []).append((name, param))
    parts: list[list[Named]] = []
    left: dict[torch.dtype, list[Named]] = {}
    for (dtype, shape), alike in by_shape.items():
        whole = len(alike) // ranks * ranks
        step = ranks * max(1, size // max(1, ranks * shape.numel()))
        parts += [alike[at : min(at + step, whole)] for at in range(0, whole, step)]
        left.setdefault(dtype, []).extend(alike[whole:])
    return parts + [rest for rest in left.values() if rest]


class Evenly(NamedTuple):
    """What comes of `evenly_dealt`, in elements.

    Attributes:
        most: of the rank that gets most.
        uneven: of the part of which ranks get unlike shares.
        even: of the largest other part, at most, had parts no size.
    """

    most: int
    uneven: int
    even: int


@cache
def evenly(shapes: tuple[tuple[int, int], ...], ranks: int) -> Evenly:
    """How `evenly_dealt` shares parameters of one type, by arithmetic.

    Args:
        shapes: elements of a parameter, and how many there are of its shape.
    """
    left = [numel for numel, count in shapes for _ in range(count % ranks)]
    parts = [numel * (count - count % ranks) for numel, count in shapes]
    _, loads = dealt(left, ranks)
    most, is_even = sum(parts) // ranks + max(loads), min(loads) == max(loads)
    return Evenly(most, 0 if is_even else sum(left), max(*parts, sum(left) if is_even else 0))
