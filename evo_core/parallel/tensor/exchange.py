"""What the ranks of the tensor axis send each other between layers that they share: pairs of forward and backward.

Where each rank of the axis computes something with a part of a layer, its input is to be whole there (`enter`), and
what comes out is a part of a sum (`leave`). What is computed alike on every rank needs no exchange but to get hold of
all rows or columns (`gather_rows`, `gather_columns`), and its gradient is whole on each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evo_core.model.uncompiled import uncompiled
from evo_core.parallel.collectives import Pending, all_gather, all_reduce, all_to_all, reduce_scatter
from evo_core.parallel.mesh import Axis


@dataclass(frozen=True)
class Exchange:
    """How the ranks of a tensor axis share the residual stream.

    Attributes:
        axis: the ranks.
        by_rows: each holds a part of the sequence's rows (msp, fsp, isp); else all rows (mtp).
        gathers_again: of a layer's gathered input only the own rows are kept for the backward pass (fsp).
    """

    axis: Axis
    by_rows: bool = False
    gathers_again: bool = False

    @classmethod
    def of(cls, mode: str, axis: Axis) -> Exchange:
        """That of a ``parallel.tensor.mode``."""
        return cls(axis, by_rows=mode != "mtp", gathers_again=mode == "fsp")

    # torch.compile makes kernels of what lies between two exchanges, not of the exchanges.

    @uncompiled
    def enter(self, x: Tensor) -> Tensor:
        """The residual stream [rows here, ...] as a cut layer reads it: [T, ...], all rows."""
        return _Enter.apply(x, self)

    @uncompiled
    def leave(self, x: Tensor) -> Tensor:
        """The residual stream [rows here, ...] from what each rank adds to it: [T, ...]."""
        return _Leave.apply(x, self)

    @uncompiled
    def gather_rows(self, x: Tensor) -> Tensor:
        """[rows here, ...] -> [T, ...], for what every rank computes alike."""
        return _GatherRows.apply(x, self) if self.by_rows else x

    @uncompiled
    def gather_columns(self, x: Tensor) -> Tensor:
        """[..., columns here] -> [..., columns], for what every rank computes alike."""
        return _GatherColumns.apply(x, self)

    @uncompiled
    def columns_to_rows(self, x: Tensor) -> Tensor:
        """[T, columns here] -> [T / ranks, columns]."""
        return _ColumnsToRows.apply(x, self)

    @uncompiled
    def sum_gradients(self, x: Tensor) -> Tensor:
        """x [...] that is alike on every rank, and goes into something of which each computes a part."""
        return _SumGradients.apply(x, self)

    def start_enter(self, x: Tensor) -> tuple[Tensor, Pending | None]:
        """All rows, under way."""
        if not self.by_rows:
            return x, None
        rows = x.new_empty((self.axis.size * x.shape[0], *x.shape[1:]))
        return rows, all_gather(rows, x.contiguous(), self.axis.group)

    def start_leave(self, x: Tensor) -> tuple[Tensor, Pending]:
        """The sum over ranks, of which the rows here; under way. It may take the memory of x."""
        if not self.by_rows:
            summed = x.contiguous()
            return summed, all_reduce(summed, self.axis.group)
        rows = x.new_empty((x.shape[0] // self.axis.size, *x.shape[1:]))
        return rows, reduce_scatter(rows, x.contiguous(), self.axis.group)

    def entered(self, x: Tensor) -> Tensor:
        """All rows of x, without a gradient."""
        rows, work = self.start_enter(x)
        if work is not None:
            work.wait()
        return rows

    def left(self, x: Tensor) -> Tensor:
        """The sum over ranks, of which the rows here, without a gradient. It may take the memory of x."""
        rows, work = self.start_leave(x)
        work.wait()
        return rows

    def own_rows(self, x: Tensor) -> Tensor:
        """[T, ...] -> the rows here."""
        rows = x.shape[0] // self.axis.size
        return x.narrow(0, self.axis.rank * rows, rows)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.entered(x) if exchange.by_rows else x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.left(_own(grads[0], ctx.exchange)), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.left(_own(x, exchange))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.entered(grads[0]), None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.entered(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.own_rows(grads[0]), None


class _GatherColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        axis = exchange.axis
        ctx.start, ctx.width = axis.rank * x.shape[-1], x.shape[-1]
        parts = x.new_empty((axis.size, *x.shape))
        all_gather(parts.view(-1), x.reshape(-1), axis.group).wait()
        return parts.movedim(0, -2).flatten(-2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].narrow(-1, ctx.start, ctx.width), None


class _ColumnsToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        received = torch.empty_like(x, memory_format=torch.contiguous_format)
        all_to_all(received, x.contiguous(), exchange.axis.group).wait()
        return received.unflatten(0, (exchange.axis.size, -1)).transpose(0, 1).flatten(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        axis = ctx.exchange.axis
        sent = grads[0].unflatten(1, (axis.size, -1)).transpose(0, 1).contiguous().flatten(0, 1)
        received = torch.empty_like(sent)
        all_to_all(received, sent, axis.group).wait()
        return received, None


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        ctx.axis = exchange.axis
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        summed = grads[0].clone(memory_format=torch.contiguous_format)
        all_reduce(summed, ctx.axis.group).wait()
        return summed, None


def _own(x: Tensor, exchange: Exchange) -> Tensor:
    """x where its sum goes to other memory, else a copy: autograd's tensors may be read by others."""
    return x if exchange.by_rows else x.clone(memory_format=torch.contiguous_format)
