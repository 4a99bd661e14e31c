"""The gradient of a weight that several ranks hold a part of: summed over them, and collected when it has arrived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from evo_core.model.dtypes import accumulation_dtype
from evo_core.parallel.collectives import Pending, reduce_scatter

if TYPE_CHECKING:
    from evo_core.parallel.weight.linear import GatheredLinear


class Collected(NamedTuple):
    """A use of a layer's parameters.

    Attributes:
        sum: where its gradients are added up.
        weight, bias: the parameters, as what the use depends on.
    """

    sum: GradientSum
    weight: Tensor
    bias: Tensor | None


class GradientSum:
    """The gradients of one use of a layer's parameters, on their way."""

    def __init__(self, layer: GatheredLinear) -> None:
        self._layer = layer
        self._under_way: list[tuple[Tensor, Pending] | None] = []

    @classmethod
    def of(cls, layer: GatheredLinear) -> Collected:
        """One for a use that is to come."""
        for parameter in (layer.weight, layer.bias):
            if parameter is not None:  # in its own type the sum over the ranks would be rounded, or in 16 bits infinite
                parameter.grad_dtype = accumulation_dtype(parameter.dtype)
        empty = cls(layer)
        return Collected(empty, *_Collect.apply(empty, layer.weight, layer.bias))

    def start(self, *gradients: Tensor | None) -> None:
        """Start summing whole gradients [n * rows, ...], of the weight and of the bias, in float32 or wider."""
        axis = self._layer.gathering.axis
        for each in gradients:
            if each is None:
                self._under_way.append(None)
                continue
            wide = each.to(accumulation_dtype(each.dtype))
            here = wide.new_empty((wide.shape[0] // axis.size, *wide.shape[1:]))
            self._under_way.append((here, reduce_scatter(here, wide, axis.group)))
        self._layer.gathering.note("sum", self._layer)

    def collect(self) -> list[Tensor | None]:
        """The parts here [rows, ...] of what was started."""
        found: list[Tensor | None] = []
        for each in self._under_way:
            if each is not None:
                each[1].wait()
            found.append(None if each is None else each[0])
        self._under_way.clear()
        self._layer.gathering.note("collect", self._layer)
        return found


class _Collect(torch.autograd.Function):
    """Parameters as they are; behind them in the backward pass, the gradients that have arrived by then.

    What autograd hands on to here are placeholders of a gradient's shape: the gradient itself is under way.
    """

    @staticmethod
    def forward(ctx: Any, into: GradientSum, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.sum = into
        return tuple(None if each is None else each.view_as(each) for each in parameters)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *ctx.sum.collect())
