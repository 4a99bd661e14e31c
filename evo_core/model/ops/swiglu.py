"""silu(gate) * up (arXiv:2002.05202)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_core.model.ops.cache_rows import by_cache, row_parts


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate, up [T, width] -> [T, width] of the same dtype. On a CPU silu(gate) is not kept for the backward pass."""
    if not by_cache(gate) or gate.dim() != 2:
        return F.silu(gate) * up
    return _SwiGLU.apply(gate, up)


class _SwiGLU(torch.autograd.Function):
    """d_up = d silu(gate), d_gate = d up silu'(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        for a, b, y in row_parts(gate, up, out):
            torch.ops.aten.silu.out(a, out=y).mul_(b)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        for a, b, d, d_a, d_b in row_parts(gate, up, grads[0], d_gate, d_up):
            torch.ops.aten.silu.out(a, out=d_b).mul_(d)
            torch.ops.aten.silu_backward.grad_input(d * b, a, grad_input=d_a)
        return d_gate, d_up
