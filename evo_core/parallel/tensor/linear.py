"""Linear layers of which each rank holds a part: of the outputs (column), or of the inputs (row).

Between a column layer and a row layer nothing is exchanged. In the backward pass the exchange of a gradient runs
behind the product that does not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evo_core.model.ops.asked import asked_for
from evo_core.model.ops.linear import Linear, linear
from evo_core.model.uncompiled import uncompiled
from evo_core.parallel.tensor.exchange import Exchange
from evo_core.parallel.tensor.products import bias_gradient, input_gradient, weight_gradient


class ColumnLinear(Linear):
    """Some of a layer's outputs: ``weight`` [out_features here, in_features], ``bias`` [out_features here] or absent.

    It takes the rows of the residual stream that are here, and returns all T rows of its own outputs.
    """

    def __init__(self, in_features: int, out_features: int, exchange: Exchange, *, bias: bool, **factory: Any) -> None:
        super().__init__(in_features, out_features, bias=bias, **factory)
        self.exchange = exchange

    def forward(self, x: Tensor) -> Tensor:
        """x [rows here, in_features] -> [T, out_features here]."""
        return self.of_one_input(x)[0]

    def of_one_input(self, x: Tensor, *others: nn.Module) -> tuple[Tensor, ...]:
        """x [rows here, in_features] -> [T, out_features here] of this layer and of others: rows are gathered once, and
        the gradients of x are summed before they are sent."""
        layers = [self, *(other for other in others if isinstance(other, ColumnLinear))]
        if len(layers) <= len(others):
            return super().of_one_input(x, *others)
        parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
        return _columns(x, self.exchange, parameters)


class RowLinear(Linear):
    """Some of a layer's inputs: ``weight`` [out_features, in_features here], ``bias`` [out_features] or absent.

    It takes all T rows of its own inputs, and returns the rows of the residual stream that are here.
    """

    def __init__(self, in_features: int, out_features: int, exchange: Exchange, *, bias: bool, **factory: Any) -> None:
        super().__init__(in_features, out_features, bias=bias, **factory)
        self.exchange = exchange

    def forward(self, x: Tensor) -> Tensor:
        """x [T, in_features here] -> [rows here, out_features]."""
        # The exchange is no part of the product: a recomputed block ends with what the last product keeps (its input),
        # and neither multiplies nor sends once more what only comes after it.
        y = self.exchange.leave(linear(x, self.weight))
        return y if self.bias is None else y + self.bias


@uncompiled
def _columns(x: Tensor, exchange: Exchange, parameters: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return _Columns.apply(x, exchange, *parameters)


class _Columns(torch.autograd.Function):
    """Several layers of one input; parameters are weight and bias of each by turns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange, *parameters: Tensor | None) -> tuple[Tensor, ...]:
        rows = exchange.entered(x)
        weights, biases = parameters[::2], parameters[1::2]
        ctx.exchange = exchange
        ctx.save_for_backward(x if exchange.gathers_again else rows, *weights)
        return tuple(linear(rows, weight, bias) for weight, bias in zip(weights, biases, strict=True))  # type: ignore[arg-type]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        exchange: Exchange = ctx.exchange
        wanted_x, _, *wanted = asked_for(ctx)
        gathering = summing = d_x = None
        if exchange.gathers_again and any(wanted[::2]):
            x, gathering = exchange.start_enter(x)
        if wanted_x:
            d_x, summing = exchange.start_leave(input_gradient(grads, weights))
        if gathering is not None:
            gathering.wait()
        result: list[Tensor | None] = []
        for grad, weight, of_weight, of_bias in zip(grads, weights, wanted[::2], wanted[1::2], strict=True):
            result.append(weight_gradient(grad, x).to(weight.dtype) if of_weight else None)
            result.append(bias_gradient(grad).to(weight.dtype) if of_bias else None)
        if summing is not None:
            summing.wait()
        return d_x, None, *result
