"""The kernels of packed attention, and which of them runs: always said with its reason.

On a CPU one causal call per document is four to ten times faster than one call with a mask over the whole sequence,
and it never forms a T x T matrix; in training, documents of some lengths are faster still by blocks of rows
(blocked_attention.py). On CUDA a kernel for variable lengths takes all documents in one call: flash-attn 2,
3 or 4, whichever is installed, those made for the chip first, else torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from evo_core.model.dtypes import product_dtype
from evo_core.model.ops.blocked_attention import by_blocks, fits
from evo_core.model.ops.cache_rows import on_a_cpu

if TYPE_CHECKING:
    from evo_core.model.ops.documents import Documents

Run = Callable[[Tensor, Tensor, Tensor, "Documents", float], Tensor]


class Kernel(NamedTuple):
    """One way to run packed attention, with the reason it was chosen."""

    name: str
    why: str
    run: Run


_FLASH_MODULES = {2: "flash_attn", 3: "flash_attn_interface", 4: "flash_attn.cute"}


@cache
def choose(device_type: str, dtype: torch.dtype, head_dim: int, use_flash_attn: bool, dropout: bool) -> Kernel:
    """The kernel for such tensors on this machine."""
    per_document = partial(Kernel, "sdpa-per-document", run=sdpa_per_document)
    if device_type != "cuda":
        why = f"variable-length kernels need CUDA, this is {device_type}"
        wide = product_dtype(dtype, device_type)
        return per_document(why if wide == dtype else f"{why}; in {wide}, since this CPU has no products of {dtype}")
    if not use_flash_attn:
        return per_document("model.use_flash_attn is false")
    if dtype not in (torch.float16, torch.bfloat16):
        return per_document(f"variable-length kernels take float16 or bfloat16, not {dtype}")
    if head_dim > 256 or head_dim % 8:
        return per_document(f"variable-length kernels take heads of 8, 16 ... 256, not {head_dim}")
    major, minor = compute_capability()
    if major < 8:
        return per_document(f"variable-length kernels need compute capability 8.0, this GPU has {major}.{minor}")
    if dropout:
        function = flash_function(2)
        if isinstance(function, str):
            return per_document(f"of the variable-length kernels only flash-attn 2 has dropout, and it {function}")
        return Kernel("flash-attn-2", "it is installed, and has dropout", partial(flash, function))
    passed_over: list[str] = []
    for version in _preferred(major):
        function = flash_function(version)
        if not isinstance(function, str):
            why = "; ".join(["it is installed", *passed_over])
            return Kernel(f"flash-attn-{version}", why, partial(flash, function))
        passed_over.append(f"flash-attn {version} {function}")
    why = "; ".join(passed_over)
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        return per_document(f"{why}; torch's varlen_attn cannot be imported: {error}")
    return Kernel("torch-varlen", why, partial(varlen, varlen_attn))


def compute_capability() -> tuple[int, int]:
    """Of the current GPU."""
    return torch.cuda.get_device_capability()


def _preferred(major: int) -> tuple[int, ...]:
    """Versions of flash-attn in the order to try them: 3 is made for compute capability 9, 4 for 10 and later."""
    if major == 9:
        return 3, 4, 2
    return (4, 2) if major > 9 else (2, 4, 3)


def flash_function(version: int) -> Callable[..., Any] | str:
    """``flash_attn_varlen_func`` of a version of flash-attn, or why it is not to be had: "is not installed"..."""
    name = _FLASH_MODULES[version]
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (error.name == name or name.startswith(f"{error.name}.")):
            return "is not installed"
        return f"cannot be imported: {error}"
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch or CUDA
        return f"cannot be imported: {error}"
    # flash-attn 4 alone leaves a package flash_attn without a version 2 in it.
    return getattr(module, "flash_attn_varlen_func", None) or "is not installed"


def flash(
    flash_attn_varlen_func: Callable[..., Any],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Documents,
    dropout: float,
) -> Tensor:
    """flash-attn of any version. With `cudnn_deterministic` its backward pass gives the same bits every time.

    q [T, heads, d], k and v [T, kv_heads, d], float16 or bfloat16 -> [T, heads, d].
    """
    options: dict[str, Any] = {"causal": True}
    if dropout:
        options["dropout_p"] = dropout
    if torch.backends.cudnn.deterministic:
        options["deterministic"] = True
    # By name: the versions put other arguments between these.
    out = flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=documents.cu_seqlens,
        cu_seqlens_k=documents.cu_seqlens,
        max_seqlen_q=documents.max_seqlen,
        max_seqlen_k=documents.max_seqlen,
        **options,
    )
    return out[0] if isinstance(out, tuple) else out  # version 4 returns the normaliser too


def varlen(
    varlen_attn: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, documents: Documents, dropout: float
) -> Tensor:
    """torch's own; it has no dropout. q [T, heads, d], k and v [T, kv_heads, d] -> [T, heads, d]."""
    cu_seqlens, longest = documents.cu_seqlens, documents.max_seqlen
    options: dict[str, object] = {"window_size": (-1, 0)}  # causal
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.11
            group = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options)


def sdpa_per_document(q: Tensor, k: Tensor, v: Tensor, documents: Documents, dropout: float) -> Tensor:
    """One causal call for each run of equally long documents. q [T, heads, d], k and v [T, kv_heads, d] ->
    [T, heads, d]."""
    runs = documents.runs
    if len(runs) == 1:
        return _equally_long(q, k, v, runs[0][1], dropout)
    sizes = [count * length for count, length in runs]
    parts = zip(*(x.split(sizes) for x in (q, k, v)), runs, strict=True)
    with of_changing_shapes(q.device):
        return torch.cat([_equally_long(q, k, v, length, dropout) for q, k, v, (_, length) in parts])


def of_changing_shapes(device: torch.device) -> AbstractContextManager[object]:
    """A block in which torch's attention is not cuDNN's.

    That makes a plan for each shape, which takes tens of milliseconds and stays in memory: good for one that comes
    again, and not for lengths that come once.
    """
    return sdpa_kernel(_WITHOUT_PLANS) if device.type == "cuda" else nullcontext()


_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _equally_long(q: Tensor, k: Tensor, v: Tensor, length: int, dropout: float) -> Tensor:
    """Documents of one length. q [n * length, heads, d], k and v [n * length, kv_heads, d] -> as q."""
    trains = torch.is_grad_enabled() and q.requires_grad and k.requires_grad and v.requires_grad
    if trains and on_a_cpu(q) and not dropout and fits(length, q.dtype):
        return by_blocks(q, k, v, length)
    return _sdpa(*(x.unflatten(0, (-1, length)) for x in (q, k, v)), dropout=dropout).flatten(0, 1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, dropout: float) -> Tensor:
    """Causal attention of equally long documents: [n, length, heads, d] -> [n, length, heads, d]."""
    dtype, wide = q.dtype, product_dtype(q.dtype, q.device.type)
    q, k, v = (x.to(wide).transpose(1, 2) for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=gqa)
    return out.to(dtype).transpose(1, 2)
