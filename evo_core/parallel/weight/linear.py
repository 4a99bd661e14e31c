"""A linear layer of which each rank holds some rows of the weight, and computes all outputs of its own tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evo_core.model.ops.asked import asked_for
from evo_core.model.ops.linear import Linear, linear
from evo_core.model.uncompiled import uncompiled
from evo_core.parallel.tensor.products import bias_gradient, input_gradient, weight_gradient
from evo_core.parallel.weight.gathering import in_backward
from evo_core.parallel.weight.gradients import GradientSum

if TYPE_CHECKING:
    from evo_core.parallel.weight.gathering import Gathering, Unit


class GatheredLinear(Linear):
    """x [..., in_features] -> [..., out_features], with ``weight`` [out_features / ranks, in_features], and ``bias``
    [out_features / ranks] or None.

    Args:
        gathering: how weights come here.
        unit: the block that it is in.
        name: in the model.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        gathering: Gathering,
        unit: Unit,
        name: str,
        *,
        bias: bool,
        **factory: Any,
    ) -> None:
        super().__init__(in_features, out_features // gathering.axis.size, bias=bias, **factory)
        self.out_features = out_features
        self.gathering, self.unit, self.name = gathering, unit, name
        unit.layers.append(self)

    # torch.compile makes kernels of what lies between two layers, not of what fetches their weights.
    @uncompiled
    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        gathering = self.gathering
        if not torch.is_grad_enabled():
            gathering.arrive(self)
            return self.product(x)
        use = gathering.collected(self)
        # Before anything is computed or fetched: a recomputed block ends with what its last layer keeps, and neither
        # fetches nor multiplies what only comes after it.
        kept = _Kept.apply(x.detach(), use.sum, self, use.weight, use.bias)
        gathering.arrive(self)
        return _Product.apply(x, kept, self)

    def product(self, x: Tensor, *, again: bool = False) -> Tensor:
        """``x W^T + b`` with the whole weight, without a gradient.

        Args:
            again: the weight is needed once more, for the gradient of x.
        """
        whole = self.gathering.fetch(self)
        y = linear(x, whole.weight, whole.bias)
        self.gathering.done(self, whole, again=again)
        return y


class _Kept(torch.autograd.Function):
    """What a layer needs for the gradients of its parameters; it gives `_Product` a placeholder to depend on.

    [..., in], parameters -> a tensor of the shape of the layer's output, without memory of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, into: GradientSum, layer: GatheredLinear, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.sum, ctx.layer = into, layer
        return x.new_zeros(()).expand(*x.shape[:-1], layer.out_features)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (grad,), layer = ctx.saved_tensors, grads, ctx.layer
        of_weight, of_bias = asked_for(ctx)[3:]
        ctx.sum.start(
            weight_gradient(grad, x) if of_weight else None,
            bias_gradient(grad) if of_bias else None,
        )
        return None, None, None, _placeholder(layer.weight, of_weight), _placeholder(layer.bias, of_bias)


class _Product(torch.autograd.Function):
    """x [..., in] -> [..., out]; keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, layer: GatheredLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x, again=ctx.needs_input_grad[0] and in_backward())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,), layer = grads, ctx.layer
        wanted_x, wanted_kept, _ = asked_for(ctx)
        d_x = None
        if wanted_x:
            layer.gathering.arrive(layer)
            whole = layer.gathering.fetch(layer)
            d_x = input_gradient([grad], [whole.weight])
            layer.gathering.done(layer, whole)
        return d_x, grad if wanted_kept else None, None


def _placeholder(parameter: Tensor | None, asked: bool) -> Tensor | None:
    """A tensor of a parameter's shape and type without memory of its own."""
    return parameter.new_zeros(()).expand(parameter.shape) if asked and parameter is not None else None
