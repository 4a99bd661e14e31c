"""Causal attention over packed documents: which kernel runs here, and the kernels themselves.

On a CPU one causal call per document is four to ten times faster than one call with a mask over the whole
sequence, and it never forms a T x T matrix. On CUDA a kernel for variable lengths takes all documents in one
call. The reference they are tested against is a dense mask in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property, partial
from inspect import signature
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Documents:
    """Where the documents of one packed sequence begin and end.

    Args:
        cu_seqlens: [n + 1] int32: 0, then the end of each document; the last is T. Repeated values
            (empty documents) are allowed, as padding to a fixed n.
        max_seqlen: the longest document, if known; else it is read from ``cu_seqlens``.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int | None = None) -> None:
        self.cu_seqlens = cu_seqlens
        self._max_seqlen = max_seqlen

    @cached_property
    def lengths(self) -> list[int]:
        """Length of each document that is not empty, in order (on CUDA this waits for the device)."""
        ends = self.cu_seqlens.tolist()
        return [end - start for start, end in pairwise(ends) if end > start]

    @cached_property
    def max_seqlen(self) -> int:
        return max(self.lengths) if self._max_seqlen is None else self._max_seqlen


class AttentionCache(Protocol):
    """Keys and values of earlier tokens, as generation keeps them."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        """Remember k and v of these tokens, and attend from q over all that is remembered."""
        ...


class CausalAttention(nn.Module):
    """The attention of one layer between projection and output: no weights, one place to choose a kernel.

    Args:
        layer: its index, by which a cache knows it.
        use_flash_attn: False keeps to one call per document even where a variable-length kernel exists.
    """

    def __init__(self, layer: int, *, use_flash_attn: bool = True) -> None:
        super().__init__()
        self.layer, self.use_flash_attn = layer, use_flash_attn

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, documents: Documents, cache: AttentionCache | None = None
    ) -> Tensor:
        """q [T, heads, d], k and v [T, kv_heads, d] -> [T, heads, d]."""
        if cache is not None:
            return cache.attend(self.layer, q, k, v, documents)
        return packed_attention(q, k, v, documents, use_flash_attn=self.use_flash_attn)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, *, use_flash_attn: bool = True) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each token seeing the tokens up to itself in its own document.

    q [T, heads, d], k and v [T, kv_heads, d] -> [T, heads, d]; query head h reads key/value head
    ``h // (heads / kv_heads)``.
    """
    return _kernel(q.device.type, q.dtype, use_flash_attn).run(q, k, v, documents)


def attention_kernel(device: torch.device | str, dtype: torch.dtype, use_flash_attn: bool = True) -> tuple[str, str]:
    """(name, why) of the kernel that runs for this device and dtype, for the start-up line."""
    kernel = _kernel(torch.device(device).type, dtype, use_flash_attn)
    return kernel.name, kernel.why


class _Kernel:
    """One way to run packed attention, with the reason it was chosen."""

    def __init__(self, name: str, why: str, run: Callable[[Tensor, Tensor, Tensor, Documents], Tensor]) -> None:
        self.name, self.why, self.run = name, why, run


@cache
def _kernel(device_type: str, dtype: torch.dtype, use_flash_attn: bool) -> _Kernel:
    per_document = partial(_Kernel, "sdpa-per-document", run=_sdpa_per_document)
    if device_type != "cuda":
        return per_document(f"variable-length kernels need CUDA, this is {device_type}")
    if not use_flash_attn:
        return per_document("model.use_flash_attn is false")
    if dtype not in (torch.float16, torch.bfloat16):
        return per_document(f"variable-length kernels take float16 or bfloat16, not {dtype}")
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        pass
    else:
        return _Kernel("flash-attn-varlen", "flash-attn is installed", partial(_flash, flash_attn_varlen_func))
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return per_document("neither flash-attn nor torch's varlen_attn is installed")
    return _Kernel("torch-varlen", "flash-attn is not installed", partial(_varlen, varlen_attn))


def _sdpa_per_document(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    lengths = documents.lengths
    if len(set(lengths)) == 1:  # equally long documents are one batch
        batch = (len(lengths), lengths[0])
        return _sdpa(*(x.unflatten(0, batch) for x in (q, k, v))).flatten(0, 1)
    parts = zip(*(x.unsqueeze(0).split(lengths, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([_sdpa(*part) for part in parts], dim=1).squeeze(0)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of equally long documents: [n, length, heads, d] -> [n, length, heads, d]."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa).transpose(1, 2)


def _flash(
    flash_attn_varlen_func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, documents: Documents
) -> Tensor:
    cu_seqlens, longest = documents.cu_seqlens, documents.max_seqlen
    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=True)


def _varlen(varlen_attn: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    cu_seqlens, longest = documents.cu_seqlens, documents.max_seqlen
    options: dict[str, object] = {"window_size": (-1, 0)}  # causal
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.11
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options)
