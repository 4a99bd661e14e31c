"""A linear layer with uninitialised weights: the one place a parallel layout replaces to cut a matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo_core.model.dtypes import product_dtype
from evo_core.model.ops.asked import asked_for
from evo_core.model.ops.onednn import onednn_product, prefers_onednn

#: A product with fewer rows is bound by reading the weights, which widening only makes longer.
_LEAST_WIDENED_ROWS = 12


class Linear(nn.Module):
    """``y = x W^T + b``; ``weight`` [out_features, in_features], ``bias`` [out_features] or absent.

    Unlike ``torch.nn.Linear`` it draws no weights when made: ``init_weights`` or a checkpoint sets them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return linear(x, self.weight, self.bias)

    def of_one_input(self, x: Tensor, *others: nn.Module) -> tuple[Tensor, ...]:
        """x [..., in_features] -> [..., out_features] of this layer and of others: a layer that fetches its input from
        other ranks can do so once."""
        return tuple(layer(x) for layer in (self, *others))

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}"


def of_one_input(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """What several layers make of x [..., in_features]: [..., out_features] of each."""
    first, *others = layers
    return first.of_one_input(x, *others) if isinstance(first, Linear) else tuple(layer(x) for layer in layers)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``, in the type that this device multiplies fast; see `product_dtype`.

    x [..., in_features], weight [out_features, in_features] -> [..., out_features] of x's dtype.
    """
    by_onednn = prefers_onednn(x, weight)
    wide = product_dtype(x.dtype, x.device.type)
    if by_onednn or (wide != x.dtype and x.numel() >= _LEAST_WIDENED_ROWS * x.shape[-1]):
        return _Product.apply(x, weight, bias, wide, by_onednn)
    return F.linear(x, weight, bias)


class _Product(torch.autograd.Function):
    """Factors are widened for each product and rounded after it, so that nothing wide is kept for the backward pass.

    Where it is `by_onednn`, products with the weight are.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, wide: torch.dtype, by_onednn: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.wide, ctx.by_onednn = wide, by_onednn
        multiply = onednn_product if by_onednn else F.linear
        return multiply(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide)).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        wanted_x, wanted_weight, wanted_bias, *_ = asked_for(ctx)
        multiply = onednn_product if ctx.by_onednn else F.linear
        grad = grads[0].to(ctx.wide)
        rows = grad.flatten(0, -2)
        d_x = multiply(grad, weight.to(ctx.wide).t(), None).to(x.dtype) if wanted_x else None
        d_weight = (rows.t() @ x.flatten(0, -2).to(ctx.wide)).to(weight.dtype) if wanted_weight else None
        d_bias = rows.sum(0).to(weight.dtype) if wanted_bias else None
        return d_x, d_weight, d_bias, None, None
