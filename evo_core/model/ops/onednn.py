"""Products of float32 matrices in training on an AMD processor, where torch's second library is the faster one.

torch multiplies float32 with MKL, whose kernels for processors of other makers use half the width of their vectors.
oneDNN, which torch uses for 16 bit anyway, goes by what the processor can do: with AVX-512 of AMD it is a tenth faster
wherever one factor is a weight, and no faster for the gradients of weights, which stay with MKL.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from torch import Tensor

from evo_core.model.ops.cache_rows import by_cache

#: With fewer rows MKL is ahead.
_LEAST_ROWS = 128


def _is_faster() -> bool:
    if not torch.backends.mkl.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    with contextlib.suppress(OSError):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    return False


# Asked once, here: torch.compile does not follow the question.
_FASTER = _is_faster()


def prefers_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether x [..., in_features] times weight^T is for oneDNN: in training alone, where a result that is rounded
    otherwise than the same row's among others harms nobody."""
    return (
        _FASTER
        and x.dtype == weight.dtype == torch.float32
        and by_cache(x)
        and x.numel() >= _LEAST_ROWS * x.shape[-1]
        and torch.is_grad_enabled()
        and (x.requires_grad or weight.requires_grad)
        and not torch.is_autocast_enabled("cpu")  # which would not be heard: it knows torch's own products
    )


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b``, not differentiable: x [..., k], weight [n, k] of any strides, float32 on a CPU -> [..., n]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
