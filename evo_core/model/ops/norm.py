"""RMSNorm and LayerNorm over the last dimension, computed in float32 or wider."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo_core.model.dtypes import accumulation_dtype


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
        x, weight = x.to(wide), self.weight.to(wide)
        if self.kind == "rmsnorm":
            y = rms_norm(x, weight, self.eps)
        else:
            bias = None if self.bias is None else self.bias.to(wide)
            y = F.layer_norm(x, (self.size,), weight, bias, self.eps)
        return y.to(self.out_dtype)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.size}, eps={self.eps}"


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] and weight [D] of one dtype, float32 or wider -> [..., D].

    torch's own has a fused kernel on CUDA; on a CPU it is a chain of small operations, and the one below
    takes half its time.
    """
    if x.is_cuda:
        return F.rms_norm(x, weight.shape, weight, eps)
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    """With n = x / r and r = sqrt(mean(x^2) + eps): dx = (w g - n mean(w g n)) / r, dw = sum(g n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(normed, weight, inverse)
        return normed * weight

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, weight, inverse = ctx.saved_tensors
        product = grads[0] * normed
        along = (product @ weight).unsqueeze(-1).div_(-weight.shape[0])
        d_x = (grads[0] * weight).addcmul_(normed, along).mul_(inverse)
        return d_x, product.flatten(0, -2).sum(0), None
