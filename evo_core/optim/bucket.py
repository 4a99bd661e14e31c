"""A bucket: parameters of one group whose gradients are reduced, and whose values are gathered, in one message.

It lays shares out rank-major, as rows of which row z is all that rank z of the ZeRO axis owns (`evo_core.optim.slots`).
Where they are alike in length they are a matrix [Z, width]: one reduce-scatter of it leaves each rank the sum of its
row, and one all-gather of rows gives back the matrix. Where they are not, each row that is not empty is reduced to its
rank, and broadcast from there: padded to one length, a few matrices over many ranks would take many times their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import nn
from torch.distributed import ProcessGroup

from evo_core.optim.groups import ParameterGroup
from evo_core.optim.slots import Slot, as_whole, by_rows, evenly_dealt, filled_up
from evo_core.parallel.collectives import Pending, all_reduce, broadcast, of_first, reduce, reduce_scatter
from evo_core.parallel.mesh import Axis
from evo_core.placement import Placed


class Bucket:
    """Parameters of one group and dtype with their gradients, reduced and gathered together.

    Args:
        group: over which ranks.
        parameters: names and parameters, of the group and all of one dtype.
        master_dtype: the type in which gradients are accumulated and reduced.

    Attributes:
        lengths: of each rank's row.
        width: of the longest one: of master values and moments each rank holds so many.
        even: whether all are as long.
    """

    def __init__(
        self, group: ParameterGroup, parameters: Sequence[tuple[str, nn.Parameter]], master_dtype: torch.dtype
    ) -> None:
        self.group, self.zero = group, group.zero
        self.slots, self.lengths = (by_rows if group.matrices is None else as_whole)(group, parameters)
        self.width = max(self.lengths)
        self.even = min(self.lengths) == self.width
        first = parameters[0][1]
        self.dtype, self.device, self.master_dtype = first.dtype, first.device, master_dtype
        self.shared = False
        self.work: list[Pending] = []
        self.unsummed: list[Axis] = []

    def owned(self) -> int:
        """Elements that this rank owns, padding not counted."""
        return sum(slot.owned(self.zero.rank) for slot in self.slots)

    def attach(self, master: torch.Tensor, grad: torch.Tensor) -> None:
        """Take the rank's row of the master values and of the reduced gradients, both [width], and fill the former."""
        self.master, self.grad = master, grad
        shape = (self.zero.size, self.width) if self.even else (1, sum(self.lengths))
        # With Z = 1 the row is the matrix.
        self.grads = grad.view(shape) if self.zero.size == 1 else grad.new_zeros(shape)
        for slot in self.slots:  # values come back as vectors, which a transposed parameter is no view of
            slot.param.data = slot.param.data.contiguous()
        self.read_parameters()
        self.shared = self.zero.size == 1 and self.dtype == self.master_dtype
        if self.shared:  # parameters are views of their own master values: nothing to gather, no second copy
            for slot in self.slots:
                numel = slot.param.numel()
                slot.param.data = master[slot.start : slot.start + numel].view(slot.param.shape)

    def share_parameters(self) -> None:
        """Give every rank that holds these parameters those of the first one: replicas must start alike, bit for bit.

        Axis after axis: after the first all ranks along it are alike, so that the next finds the same everywhere.
        """
        for axis in (self.zero, *self.group.replica):
            together([slot.param.data for slot in self.slots], axis, of_first)

    def read_parameters(self, but: Collection[str] = ()) -> None:
        """Set the rank's master values from the parameters, those of the names in `but` left as they are."""
        if self.shared:
            return
        row = self.zero.rank
        for slot in (slot for slot in self.slots if slot.name not in but):
            own = slot.own(slot.param.detach().reshape(-1), row)
            self.master[slot.start : slot.start + own.numel()].copy_(own)

    def accumulate(self, slot: Slot) -> None:
        """Move the gradient of a parameter into the bucket, adding to what earlier micro-batches left."""
        grad = slot.param.grad
        if grad is not None:
            slot.put(self.grads, grad.reshape(-1), add=slot.filled)
            slot.param.grad = None
            slot.filled = True

    def reduce(self) -> None:
        """Start summing the gradients over the first of the group's axes: the ZeRO axis, if it has several ranks."""
        for slot in self.slots:
            self.accumulate(slot)  # a pipeline schedule may set gradients in ways that call no hook
            if not slot.filled:  # no loss depends on it in this step
                slot.clear(self.grads)
            slot.filled = False
        self.unsummed = [axis for axis in self.group.reduce if axis is not self.zero and axis.size > 1]
        if not self.even:
            rows = enumerate(self._rows())
            self.work = [reduce(row, owner, self.zero.group) for owner, row in rows if row.numel()]
        elif self.zero.size > 1:
            self.work = [reduce_scatter(self.grad, self.grads.view(-1), self.zero.group)]
        elif self.unsummed:
            self.work = [all_reduce(self.grad, self.unsummed.pop(0).group)]

    def finish_reduce(self) -> None:
        """Wait for `reduce`, then sum the rank's row over the other axes: `grad` is the sum over all of them."""
        for work in self.work:
            work.wait()
        self.work = []
        if not self.even:
            own = self._rows()[self.zero.rank]
            self.grad[: own.numel()].copy_(own)
        for axis in self.unsummed:
            all_reduce(self.grad, axis.group).wait()
        if self.group.ends is not None:  # only here: before, the other end may still be at work on this one's batches
            all_reduce(self.grad, self.group.ends.group).wait()
        for axis in self.group.alike:
            if axis.size > 1:
                broadcast(self.grad, 0, axis.group).wait()
        if self.group.repeated is not None:
            sum_repeated((slot.placed(self.grad) for slot in self.slots), self.group.repeated)

    def _rows(self) -> Sequence[torch.Tensor]:
        """The gradients that each rank owns, where these are unlike."""
        return self.grads[0].split(self.lengths)

    def write_parameters(self) -> None:
        """Set the parameters from the master values, all of which are here: with Z = 1."""
        if not self.shared:
            for slot in (slot for slot in self.slots if slot.width):
                slot.take(self.master.view(1, -1), 0)


def together(
    tensors: Sequence[torch.Tensor], axis: Axis, collective: Callable[[torch.Tensor, ProcessGroup], Pending]
) -> None:
    """Have the ranks of an axis do something in place with tensors of any shapes, in one message."""
    if not tensors or axis.size == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    collective(flat, axis.group).wait()
    for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view_as(tensor))


def sum_repeated(gradients: Iterable[Placed], axis: Axis) -> None:
    """Sum the gradients of the pieces that all ranks of an axis hold, which lie alike on each of them."""
    pieces = (piece for placed in gradients for piece in placed.pieces())
    together([view for piece, view in pieces if set(axis.ranks) <= set(piece.ranks)], axis, all_reduce)


def make_buckets(group: ParameterGroup, bucket_size: int, master_dtype: torch.dtype) -> list[Bucket]:
    """Buckets of at most `bucket_size` elements (or one larger parameter), last parameters first; of matrices that stay
    whole one at least for each rank of the ZeRO axis.

    Backward makes gradients from the last layer to the first, so the first bucket is the first one complete.
    """
    backwards = reversed(list(group.parameters.items()))
    if group.matrices is None:
        parts = filled_up(backwards, bucket_size)
    else:
        parts = evenly_dealt(backwards, bucket_size, group.zero.size)
    return [Bucket(group, part, master_dtype) for part in parts]
