"""Rotary position embedding (arXiv:2104.09864) at given positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from evo_core.model.dtypes import accumulation_dtype
from evo_core.model.ops.cache_rows import by_cache, row_parts

if TYPE_CHECKING:
    from evo_core.config.schema.model import RopeScalingConfig


class Rotary(NamedTuple):
    """The rotation of each token, laid out so that it takes one multiply and one multiply-add.

    ``x rotated = x * cos + partner(x) * sin``, where the partner of an element is the other one of its pair
    and sin carries the sign of its place in the pair.

    Args:
        cos, sin: [T, head_dim], float32 or wider.
        interleaved: pair i is elements (2i, 2i + 1), as in Meta's and GPT-J's weights; else elements
            (i, i + head_dim / 2), as in GPT-NeoX's and Hugging Face's.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool


def rotary(
    positions: Tensor,
    head_dim: int,
    base: float | Tensor,
    *,
    interleaved: bool,
    dtype: torch.dtype,
    scaling: RopeScalingConfig | None = None,
) -> Rotary:
    """The rotation at positions [T]: pair i turns by ``position * inverse_frequencies(...)[i]`` radians.

    The angle is formed in float64, where position 10^6 still has nine digits after the point; the tables have
    float32 or, for a float64 model, float64.

    Args:
        base: one for all tokens, or [T] float64, a base of each token's own.
        scaling: see `inverse_frequencies`.
    """
    turns = inverse_frequencies(head_dim, base, scaling, device=positions.device)
    angle = positions.to(torch.float64)[:, None] * turns
    cos, sin = angle.cos().to(accumulation_dtype(dtype)), angle.sin().to(accumulation_dtype(dtype))
    if interleaved:
        return Rotary(torch.stack((cos, cos), -1).flatten(1), torch.stack((-sin, sin), -1).flatten(1), True)
    return Rotary(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1), False)


def inverse_frequencies(
    head_dim: int,
    base: float | Tensor,
    scaling: RopeScalingConfig | None = None,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Radians per position of each pair, float64: ``base^(-2i / head_dim)``, slowed down by a scaling.

    "llama3" (Llama 3.1, arXiv:2407.21783 and its published code): a pair whose wavelength is longer than
    ``original_max_position_embeddings / low_freq_factor`` turns ``factor`` times slower, one shorter than
    ``original_max_position_embeddings / high_freq_factor`` as before, and between them the speed goes over
    linearly in the turns that a pair makes over the original length.

    Args:
        base: one number, giving [head_dim / 2], or a tensor [T], giving [T, head_dim / 2].
        scaling: None, or the numbers of "llama3".
    """
    exponent = torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / -head_dim
    inverse = base[:, None] ** exponent if isinstance(base, Tensor) else base**exponent
    if scaling is None:
        return inverse
    turns = scaling.original_max_position_embeddings * inverse / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return inverse * (kept + (1 - kept) / scaling.factor)


def rotate(x: Tensor, rotation: Rotary) -> Tensor:
    """x [T, ..., head_dim] with the pairs of its last dimension turned.

    A new contiguous tensor of x's shape and dtype; computed in the dtype of the tables, rounded once.
    """
    return _Rotate.apply(x, *rotation)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, sign: int) -> Tensor:
    # Contiguous whatever x is (a slice of a fused projection, say): kernels of attention want it so.
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    everything = (x, cos, sin, out)
    for part, cosine, sine, turned in row_parts(*everything) if by_cache(x) else [everything]:
        shape = (part.shape[0],) + (1,) * (x.dim() - 2) + (x.shape[-1],)
        wide = part.to(cos.dtype)
        if interleaved:
            partner = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            partner = wide.roll(x.shape[-1] // 2, -1)
        to = turned if turned.dtype == wide.dtype else torch.empty_like(wide, memory_format=torch.contiguous_format)
        torch.mul(wide, cosine.view(shape), out=to).addcmul_(partner, sine.view(shape), value=sign)
        if to is not turned:
            turned.copy_(to)
    return out


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back, so nothing but the tables is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turn(x, cos, sin, interleaved, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, sin, ctx.interleaved, -1), None, None, None
