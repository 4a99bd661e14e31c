"""RMSNorm and LayerNorm over the last dimension, computed in float32 or wider."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo_core.model.dtypes import accumulation_dtype
from evo_core.model.ops.cache_rows import by_cache, row_parts


class Norm(nn.Module):
    """Normalisation with a learned scale: ``weight`` [size], and for layer norm ``bias`` [size].

    rmsnorm (arXiv:1910.07467): ``x / sqrt(mean(x^2) + eps) * weight``.
    layernorm (arXiv:1607.06450): ``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias``.

    Args:
        kind: "rmsnorm" or "layernorm".
        out_dtype: dtype of the result. The weights' own ``dtype`` may be wider (`use_fp32_norm`), and so
            may the input's (`residual_in_fp32`); all is computed in the widest of them and float32.
    """

    def __init__(
        self,
        kind: str,
        size: int,
        eps: float,
        *,
        out_dtype: torch.dtype,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.size, self.eps, self.out_dtype = kind, size, eps, out_dtype
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(size, device=device, dtype=dtype)) if kind == "layernorm" else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] of any floating dtype -> [..., size] of ``out_dtype``."""
        wide = accumulation_dtype(torch.promote_types(x.dtype, self.weight.dtype))
        weight = self.weight.to(wide)
        if self.kind == "rmsnorm" and by_cache(x):
            return _RMSNorm.apply(x, weight, self.eps, self.out_dtype)
        if self.kind == "rmsnorm":
            y = F.rms_norm(x.to(wide), (self.size,), weight, self.eps)
        else:
            bias = None if self.bias is None else self.bias.to(wide)
            y = F.layer_norm(x.to(wide), (self.size,), weight, bias, self.eps)
        return y.to(self.out_dtype)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.size}, eps={self.eps}"


class _RMSNorm(torch.autograd.Function):
    """On a CPU, where torch's own is a chain of small operations: a few rows at a time, and no copy of x is kept.

    With n = x / r and r = sqrt(mean(x^2) + eps): dx = (w g - n mean(w g n)) / r, dw = sum(g n). Computed in the dtype
    of the weight [D], float32 or wider.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
        wide = weight.dtype
        inverse = torch.empty((*x.shape[:-1], 1), dtype=wide, device=x.device)
        out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
        for part, inverted, y in row_parts(x, inverse, out):
            rows = part.to(wide)
            torch.linalg.vector_norm(rows, dim=-1, keepdim=True, out=inverted)
            inverted.square_().div_(rows.shape[-1]).add_(eps).rsqrt_()
            y.copy_((rows * inverted).mul_(weight))
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        wide, width = weight.dtype, weight.shape[0]
        d_x, d_weight = torch.empty_like(x), torch.zeros_like(weight)
        for part, grad, inverted, d_part in row_parts(x, grads[0], inverse, d_x):
            rows = grad.to(wide)
            normed = part.to(wide) * inverted
            product = rows * normed
            d_weight += product.reshape(-1, width).sum(0)
            along = (product @ weight).unsqueeze(-1).div_(-width)
            torch.mul(rows, weight, out=product).addcmul_(normed, along)
            d_part.copy_(product.mul_(inverted))
        return d_x, d_weight, None, None
