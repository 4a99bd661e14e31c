"""A bucket: parameters whose gradients are reduced, and whose values are gathered, in one message.

Every parameter is flattened, padded to a multiple of the ZeRO size Z and cut into Z equal slices; rank z of the group
owns slice z. A bucket lays its slices out rank-major, as a matrix [Z, width] whose row z is all that rank z owns, so
that one reduce-scatter of the matrix leaves each rank the sum of its row, and one all-gather of rows gives back the
matrix. The cut is the one of `torch.chunk`, with which a checkpoint is cut again for any other Z.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from evo_core.parallel.collectives import Pending, all_gather, reduce_scatter
from evo_core.parallel.mesh import Mesh


@dataclass
class Slot:
    """The place of one parameter in its bucket.

    Attributes:
        start: first column of the parameter's slices.
        width: columns, ``ceil(numel / Z)``.
        filled: whether a gradient has been added since the last reduction.
    """

    name: str
    param: nn.Parameter
    start: int
    width: int
    filled: bool = False

    def owned(self, zero_rank: int) -> int:
        """Elements of the parameter, padding not counted, that a rank owns."""
        return max(0, min(self.width, self.param.numel() - zero_rank * self.width))

    def put(self, matrix: torch.Tensor, flat: torch.Tensor, *, add: bool = False) -> None:
        """Write `flat` [numel] into the parameter's columns of a [Z, width] matrix, or add it to them."""
        for there, here in self._pieces(matrix, flat):
            there.add_(here) if add else there.copy_(here)

    def take(self, matrix: torch.Tensor, flat: torch.Tensor) -> None:
        """Read the parameter's columns back into `flat` [numel]."""
        for there, here in self._pieces(matrix, flat):
            here.copy_(there)

    def _pieces(self, matrix: torch.Tensor, flat: torch.Tensor) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Matching views: the full rows, and the part of the row in which the parameter ends."""
        rows, rest = divmod(flat.numel(), self.width)
        columns = matrix[:, self.start : self.start + self.width]
        yield columns[:rows], flat[: rows * self.width].view(rows, self.width)
        if rest:
            yield columns[rows, :rest], flat[rows * self.width :]


class Bucket:
    """Parameters of one dtype with their gradients, reduced and gathered together.

    Args:
        parameters: names and parameters, all of one dtype.
        mesh: the ranks.
        master_dtype: the type in which gradients are accumulated and reduced.
    """

    def __init__(self, parameters: list[tuple[str, nn.Parameter]], mesh: Mesh, master_dtype: torch.dtype) -> None:
        self.mesh = mesh
        self.slots: list[Slot] = []
        self.width = 0
        for name, param in parameters:
            width = -(-param.numel() // mesh.zero.size)
            self.slots.append(Slot(name, param, self.width, width))
            self.width += width
        first = parameters[0][1]
        self.dtype, self.device, self.master_dtype = first.dtype, first.device, master_dtype
        self.shared = False
        self.work: Pending | None = None

    def owned(self, zero_rank: int) -> int:
        """Elements that a rank owns, padding not counted."""
        return sum(slot.owned(zero_rank) for slot in self.slots)

    def attach(self, master: torch.Tensor, grad: torch.Tensor) -> None:
        """Take the rank's row of the master values and of the reduced gradients, both [width], and fill the former."""
        self.master, self.grad = master, grad
        shape = (self.mesh.zero.size, self.width)
        # With Z = 1 the row is the matrix. With Z > 1 the values are gathered where gradients were, if they fit.
        self.grads = grad.view(shape) if self.mesh.zero.size == 1 else grad.new_zeros(shape)
        self.values = self.grads
        if self.dtype != self.master_dtype:
            self.values = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self.read_parameters()
        self.shared = self.mesh.zero.size == 1 and self.dtype == self.master_dtype
        if self.shared:  # parameters are views of their own master values: nothing to gather, no second copy
            for slot in self.slots:
                numel = slot.param.numel()
                slot.param.data = master[slot.start : slot.start + numel].view(slot.param.shape)

    def read_parameters(self) -> None:
        """Set the rank's master values from the parameters."""
        if self.shared:
            return
        row = self.mesh.zero.rank
        for slot in self.slots:
            owned = slot.owned(row)
            start = row * slot.width
            flat = slot.param.detach().reshape(-1)[start : start + owned]
            self.master[slot.start : slot.start + owned].copy_(flat)

    def accumulate(self, slot: Slot) -> None:
        """Move the gradient of a parameter into the bucket, adding to what earlier micro-batches left."""
        grad = slot.param.grad
        if grad is not None:
            slot.put(self.grads, grad.reshape(-1), add=slot.filled)
            slot.param.grad = None
            slot.filled = True

    def reduce(self) -> None:
        """Start summing the gradients over the ZeRO group (over the replicas, where the group has one rank)."""
        for slot in self.slots:
            if not slot.filled:  # no loss depends on it in this step
                self.grads[:, slot.start : slot.start + slot.width].zero_()
            slot.filled = False
        if self.mesh.zero.size > 1:
            self.work = reduce_scatter(self.grad, self.grads.view(-1), self.mesh.zero.group)
        elif self.mesh.replica.size > 1:
            self.work = dist.all_reduce(self.grad, group=self.mesh.replica.group, async_op=True)

    def finish_reduce(self) -> None:
        """Wait for `reduce`, then sum the rank's row over the replicas: `grad` is the sum over all data ranks."""
        if self.work is None:
            return
        self.work.wait()
        self.work = None
        if self.mesh.zero.size > 1 and self.mesh.replica.size > 1:
            dist.all_reduce(self.grad, group=self.mesh.replica.group)

    def gather(self) -> None:
        """Start handing the updated master values to every rank of the ZeRO group."""
        if self.mesh.zero.size > 1:
            row = self.master.to(self.dtype)
            self.work = all_gather(self.values.view(-1), row, self.mesh.zero.group)
        elif not self.shared:
            self.values.view(-1).copy_(self.master)

    def finish_gather(self) -> None:
        """Wait for `gather` and write the parameters."""
        if self.work is not None:
            self.work.wait()
            self.work = None
        if not self.shared:
            for slot in self.slots:
                slot.take(self.values, slot.param.data.view(-1))


def make_buckets(
    parameters: Iterable[tuple[str, nn.Parameter]], mesh: Mesh, bucket_size: int, master_dtype: torch.dtype
) -> list[Bucket]:
    """Fill buckets of at most `bucket_size` elements (or one larger parameter), last parameters first.

    Backward makes gradients from the last layer to the first, so the first bucket is the first one complete.
    """
    by_dtype: dict[torch.dtype, list[list[tuple[str, nn.Parameter]]]] = {}
    for name, param in reversed(list(parameters)):
        if not param.requires_grad:
            continue
        groups = by_dtype.setdefault(param.dtype, [[]])
        if groups[-1] and sum(p.numel() for _, p in groups[-1]) + param.numel() > bucket_size:
            groups.append([])
        groups[-1].append((name, param))
    return [Bucket(group, mesh, master_dtype) for groups in by_dtype.values() for group in groups]
