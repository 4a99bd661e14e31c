"""The products of a linear layer's backward pass, in the type that the device multiplies fast (`product_dtype`).

Gradients of parameters are left in it: whoever adds them up over ranks does so before they are rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evo_core.model.dtypes import product_dtype


def input_gradient(grads: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """sum of grad [..., out] @ weight [out, in] over the layers of one input -> [..., in]."""
    wide = product_dtype(grads[0].dtype, grads[0].device.type)
    total: Tensor | None = None
    for grad, weight in zip(grads, weights, strict=True):
        rows = grad.to(wide).flatten(0, -2)
        total = rows @ weight.to(wide) if total is None else total.addmm_(rows, weight.to(wide))
    assert total is not None
    return total.to(grads[0].dtype).unflatten(0, grads[0].shape[:-1])


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad [..., out] and x [..., in] -> [out, in]."""
    wide = product_dtype(grad.dtype, grad.device.type)
    return grad.to(wide).flatten(0, -2).t() @ x.to(wide).flatten(0, -2)


def bias_gradient(grad: Tensor) -> Tensor:
    """grad [..., out] -> [out]."""
    wide = product_dtype(grad.dtype, grad.device.type)
    return grad.to(wide).flatten(0, -2).sum(0)
