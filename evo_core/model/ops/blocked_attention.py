"""Packed attention on a CPU as matrix products of blocks of rows: what a training step does with short documents.

A block of queries meets all keys that it may see in one product, so that a softmax is one call and nothing is carried
from block to block. Scores, their softmax and their gradients have float32 or wider; of 16-bit tensors only the factors
of the other products are rounded, as a fused kernel rounds them. torch's own fused kernel keeps less in memory and wins
where a block's scores do not stay in the cache: for longer documents, and for a few tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from evo_core.model.dtypes import accumulation_dtype, product_dtype

#: Lengths of documents for which it is faster than torch's kernel, whose backward pass is slow for few 16-bit tokens.
#: These and the sizes below were measured with heads of 64 and 128 on a core with a second cache of one megabyte.
_SHORTEST, _SHORTEST_OF_16_BIT, _LONGEST = 192, 32, 1024
#: Rows of a block.
_ROWS = 64
#: Scores that a thread has in hand at once.
_SCORES = 2**18


def fits(length: int, dtype: torch.dtype) -> bool:
    """Whether documents of so many tokens are faster by blocks."""
    return (_SHORTEST_OF_16_BIT if dtype.itemsize == 2 else _SHORTEST) <= length <= _LONGEST


def by_blocks(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    """Causal attention of equally long documents, one behind the other, differentiable.

    q [n * length, heads, d], k and v [n * length, kv_heads, d] on a CPU -> [n * length, heads, d].
    """
    return _ByBlocks.apply(q, k, v, length)


class _ByBlocks(torch.autograd.Function):
    """Keeps q, k and v; the backward pass computes each block's softmax again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.length = length
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        views = _views(length, k.shape[1], q, k, v, out)
        for part in _parts(views[0]):
            _forward(*(view[part] for view in views))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        saved = ctx.saved_tensors
        d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in saved)
        views = _views(ctx.length, saved[1].shape[1], *saved, grads[0], d_q, d_k, d_v)
        for part in _parts(views[0]):
            _backward(*(view[part] for view in views))
        return d_q, d_k, d_v, None


def _views(length: int, kv_heads: int, *tensors: Tensor) -> list[Tensor]:
    """[n * length, heads, d] as [n, kv_heads, heads / kv_heads, length, d]; as many heads as kv_heads as
    [n, kv_heads, 1, length, d]."""
    split = (x.unflatten(0, (-1, length)).unflatten(2, (kv_heads, -1)) for x in tensors)
    return [x.permute(0, 2, 3, 1, 4) for x in split]


def _parts(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Which documents and heads of q [n, kv_heads, group, L, d] go together, so that the scores of their block of rows
    stay in the cache."""
    documents, kv_heads, group, length, _ = q.shape
    of_a_head = group * min(_ROWS, length) * length
    at_once = max(1, _SCORES * torch.get_num_threads() // of_a_head)
    heads = min(kv_heads, at_once)
    step = max(1, at_once // kv_heads)
    for first in range(0, documents, step):
        for head in range(0, kv_heads, heads):
            yield slice(first, first + step), slice(head, head + heads)


def _of_heads(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values [n, heads, 1, L, d] as a batch of matrices [n * heads, L, d]."""
    return x.squeeze(2).to(dtype).flatten(0, 1)


def _forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """q and out [n, heads, group, L, d], k and v [n, heads, 1, L, d]."""
    wide, factor = accumulation_dtype(q.dtype), product_dtype(q.dtype, "cpu")
    keys, values = _of_heads(k, wide), _of_heads(v, factor)
    for rows in _blocks(q):
        weights = _weights(_queries(q, rows, wide), keys, rows)
        product = weights.to(factor) @ values[:, : rows.stop]
        out[..., rows, :] = product.view(out[..., rows, :].shape)


def _backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> None:
    """Fills d_q [n, heads, group, L, d], d_k and d_v [n, heads, 1, L, d].

    With P the softmax of S = scale q k^T: dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(P dP)), dq = scale dS k,
    dk = dS^T (scale q).
    """
    wide, factor = accumulation_dtype(q.dtype), product_dtype(q.dtype, "cpu")
    keys, values, scale = _of_heads(k, wide), _of_heads(v, wide), q.shape[-1] ** -0.5
    keys_as_factor = keys.to(factor)
    sum_k, sum_v = torch.empty_like(keys), torch.empty_like(keys)
    # The last rows see all keys: their products begin the sums, and those of the others are added.
    for rows in reversed(_blocks(q)):
        queries = _queries(q, rows, wide)
        weights = _weights(queries, keys, rows)
        d_out = grad[..., rows, :].flatten(2, 3).flatten(0, 1)
        d_weights = d_out.to(wide) @ values[:, : rows.stop].mT
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, wide).to(factor)
        d_out, weights = d_out.to(factor), weights.to(factor)
        _add_product(sum_v, weights.mT, d_out, rows.stop)
        _add_product(sum_k, d_scores.mT, queries.to(factor), rows.stop)
        product = (d_scores @ keys_as_factor[:, : rows.stop]).mul_(scale)
        d_q[..., rows, :] = product.view(d_q[..., rows, :].shape)
    d_k.copy_(sum_k.view(d_k.shape))
    d_v.copy_(sum_v.view(d_v.shape))


def _blocks(q: Tensor) -> list[slice]:
    """Rows of q [..., L, d]."""
    length = q.shape[-2]
    return [slice(first, min(length, first + _ROWS)) for first in range(0, length, _ROWS)]


def _queries(q: Tensor, rows: slice, wide: torch.dtype) -> Tensor:
    """A block of q [n, heads, group, L, d], scaled: [n * heads, group * rows, d]."""
    return (q[..., rows, :].to(wide) * q.shape[-1] ** -0.5).flatten(2, 3).flatten(0, 1)


def _weights(queries: Tensor, keys: Tensor, rows: slice) -> Tensor:
    """The softmax of a block's scores: queries [B, group * rows, d], keys [B, L, d] -> [B, group * rows, rows.stop]."""
    scores = queries @ keys[:, : rows.stop].mT
    height = rows.stop - rows.start
    # Of the keys seen by the block only the last ones are ahead of some of its rows.
    scores.unflatten(1, (-1, height))[..., rows.start :] += _ahead(height, scores.dtype)
    return torch.softmax(scores, -1)


def _ahead(height: int, dtype: torch.dtype) -> Tensor:
    """[height, height], minus infinity where the key comes after the query."""
    return torch.full((height, height), -torch.inf, dtype=dtype).triu_(1)


def _add_product(total: Tensor, a: Tensor, b: Tensor, width: int) -> None:
    """Add a @ b [B, width, d] to the first rows of total [B, L, d], or begin it where these are all its rows."""
    part = total[:, :width]
    if a.dtype == total.dtype:
        torch.baddbmm(part, a, b, beta=int(width < total.shape[1]), out=part)
    elif width < total.shape[1]:
        part += a @ b
    else:
        total.copy_(a @ b)
