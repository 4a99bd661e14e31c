"""Packed attention against a dense mask in float64."""

from __future__ import annotations

import math
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_core.model import attention_kernel
from evo_core.model.ops import attention as page
from evo_core.model.ops.attention import Documents, packed_attention
from tests.model.configs import relative_error


def dense(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v with the whole T x T matrix."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    visible = (document[:, None] == document) & torch.ones(len(document), len(document)).tril().bool()
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hts,shd->thd", scores.masked_fill(~visible, -math.inf).softmax(-1), v)


def random_qkv(tokens: int, heads: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, heads, 8), (tokens, kv_heads, 8), (tokens, kv_heads, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def cu_seqlens(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("lengths", [[12], [4, 4, 4], [1, 7, 2, 5], [1, 1, 1]])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_output_and_gradients_equal_the_dense_mask(
    lengths: list[int], heads: int, kv_heads: int, dtype: torch.dtype, bound: float
) -> None:
    ours = [x.requires_grad_() for x in random_qkv(sum(lengths), heads, kv_heads, dtype)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    out, expected = packed_attention(*ours, Documents(cu_seqlens(lengths))), dense(*exact, lengths)
    assert out.dtype == dtype
    assert relative_error(out, expected) < bound
    weights = torch.randn(out.shape, dtype=torch.float64)
    out.backward(weights.to(dtype))
    expected.backward(weights.to(dtype).double())
    for a, b in zip(ours, exact, strict=True):
        assert relative_error(a.grad, b.grad) < bound if b.grad.abs().max() > 0 else a.grad.abs().max() < bound


def test_empty_documents_at_the_end_are_padding() -> None:
    q, k, v = random_qkv(6, 2, 2, torch.float64)
    padded = torch.tensor([0, 2, 6, 6, 6], dtype=torch.int32)
    assert torch.equal(packed_attention(q, k, v, Documents(padded)), packed_attention(q, k, v, Documents(padded[:3])))


def test_documents_know_their_lengths() -> None:
    documents = Documents(torch.tensor([0, 3, 3, 10], dtype=torch.int32))
    assert documents.lengths == [3, 7]
    assert documents.max_seqlen == 7
    assert Documents(documents.cu_seqlens, max_seqlen=16).max_seqlen == 16


def test_the_kernel_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    page._kernel.cache_clear()
    name, why = attention_kernel("cpu", torch.float32)
    assert name == "sdpa-per-document"
    assert "cpu" in why
    assert "use_flash_attn is false" in attention_kernel("cuda", torch.bfloat16, use_flash_attn=False)[1]
    assert "float32" in attention_kernel("cuda", torch.float32)[1]

    flash = ModuleType("flash_attn")
    flash.flash_attn_varlen_func = lambda *args, **options: None  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "flash_attn", flash)
    page._kernel.cache_clear()
    assert attention_kernel("cuda", torch.bfloat16)[0] == "flash-attn-varlen"
    monkeypatch.setitem(__import__("sys").modules, "flash_attn", None)
    page._kernel.cache_clear()
    assert attention_kernel("cuda", torch.bfloat16)[0] == "torch-varlen"
    monkeypatch.setitem(__import__("sys").modules, "torch.nn.attention.varlen", None)
    page._kernel.cache_clear()
    assert attention_kernel("cuda", torch.bfloat16)[0] == "sdpa-per-document"
    page._kernel.cache_clear()


def test_variable_length_kernels_are_called_causally() -> None:
    lengths = [3, 5]
    q, k, v = random_qkv(8, 4, 2, torch.float64)
    calls: list[SimpleNamespace] = []

    def flash(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, n_q: int, n_k: int, **options: Any
    ) -> Tensor:
        calls.append(SimpleNamespace(cu=(cu_q.tolist(), cu_k.tolist()), longest=(n_q, n_k), options=options))
        return dense(q, k, v, lengths)

    def varlen(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, n_q: int, n_k: int, *,
               window_size: tuple[int, int], enable_gqa: bool = False) -> Tensor:  # fmt: skip
        assert enable_gqa
        return flash(q, k, v, cu_q, cu_k, n_q, n_k, window_size=window_size)

    def varlen_of_2_11(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, n_q: int, n_k: int, *,
                       window_size: tuple[int, int]) -> Tensor:  # fmt: skip
        assert k.shape == q.shape
        return flash(q, k, v, cu_q, cu_k, n_q, n_k, window_size=window_size)

    documents = Documents(cu_seqlens(lengths))
    expected = dense(q, k, v, lengths)
    for out in (
        page._flash(flash, q, k, v, documents),
        page._varlen(varlen, q, k, v, documents),
        page._varlen(varlen_of_2_11, q, k, v, documents),
    ):
        assert torch.allclose(out, expected)
    assert [call.cu for call in calls] == [([0, 3, 8], [0, 3, 8])] * 3
    assert [call.longest for call in calls] == [(5, 5)] * 3
    assert [call.options for call in calls] == [{"causal": True}, {"window_size": (-1, 0)}, {"window_size": (-1, 0)}]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_kernel_of_this_gpu_equals_the_dense_mask(dtype: torch.dtype, kv_heads: int) -> None:
    lengths = [17, 1, 64, 40]
    exact = [torch.randn(sum(lengths), n, 32, dtype=torch.float64).requires_grad_() for n in (4, kv_heads, kv_heads)]
    ours = [x.detach().to("cuda", dtype).requires_grad_() for x in exact]
    out = packed_attention(*ours, Documents(cu_seqlens(lengths).cuda()))
    expected = dense(*exact, lengths)
    bound = 3e-2 if dtype == torch.bfloat16 else 1e-3
    assert relative_error(out.cpu(), expected) < bound
    weights = torch.randn_like(expected)
    out.backward(weights.to("cuda", dtype))
    expected.backward(weights)
    for a, b in zip(ours, exact, strict=True):
        assert relative_error(a.grad.cpu(), b.grad) < bound
