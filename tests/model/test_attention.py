"""Packed attention against a dense mask in float64."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_core.model import attention_kernel
from evo_core.model.ops import attention_kernels as kernels
from evo_core.model.ops.attention import packed_attention
from evo_core.model.ops.documents import Documents
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


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Pretends a GPU of some compute capability with some versions of flash-attn installed."""

    def pretend(capability: tuple[int, int] = (9, 0), **modules: Any) -> None:
        kernels.choose.cache_clear()
        monkeypatch.setattr(kernels, "compute_capability", lambda: capability)
        for version, name in ((2, "flash_attn"), (3, "flash_attn_interface"), (4, "flash_attn.cute")):
            function = modules.get(f"flash{version}")
            if function is None:
                monkeypatch.setitem(sys.modules, name, ModuleType(name) if version == 2 else None)
            else:
                module = ModuleType(name)
                module.flash_attn_varlen_func = function  # type: ignore[attr-defined]
                monkeypatch.setitem(sys.modules, name, module)

    yield pretend
    kernels.choose.cache_clear()


def never(*args: Any, **options: Any) -> Tensor:
    raise AssertionError("not to be called")


def test_the_kernel_of_a_cpu_is_named_with_its_reason() -> None:
    name, why = attention_kernel("cpu", torch.float32)
    assert name == "sdpa-per-document"
    assert "cpu" in why


@pytest.mark.parametrize(
    ("capability", "installed", "expected"),
    [
        ((8, 0), {2}, "flash-attn-2"),
        ((8, 0), {2, 3, 4}, "flash-attn-2"),
        ((9, 0), {2}, "flash-attn-2"),
        ((9, 0), {2, 4}, "flash-attn-4"),
        ((9, 0), {2, 3, 4}, "flash-attn-3"),
        ((10, 0), {2, 3, 4}, "flash-attn-4"),
        ((10, 0), {3}, "torch-varlen"),
        ((8, 6), set(), "torch-varlen"),
    ],
)
def test_the_installed_flash_attn_that_is_made_for_the_chip_runs(
    machine: Callable[..., None], capability: tuple[int, int], installed: set[int], expected: str
) -> None:
    machine(capability, **{f"flash{version}": never for version in installed})
    name, why = attention_kernel("cuda", torch.bfloat16)
    assert name == expected
    assert ("it is installed" in why) == (expected != "torch-varlen")


@pytest.mark.parametrize(
    ("options", "capability", "reason"),
    [
        ({"use_flash_attn": False}, (9, 0), "use_flash_attn is false"),
        ({"dtype": torch.float32}, (9, 0), "not torch.float32"),
        ({"head_dim": 260}, (9, 0), "not 260"),
        ({"head_dim": 20}, (9, 0), "not 20"),
        ({}, (7, 5), "this GPU has 7.5"),
        ({"dropout": 0.1}, (9, 0), "only flash-attn 2 has dropout, and it is not installed"),
    ],
)
def test_what_no_variable_length_kernel_takes_runs_per_document(
    machine: Callable[..., None], options: dict[str, Any], capability: tuple[int, int], reason: str
) -> None:
    machine(capability, flash3=never, flash4=never)
    name, why = attention_kernel("cuda", **{"dtype": torch.bfloat16, **options})
    assert name == "sdpa-per-document"
    assert reason in why


def test_a_flash_attn_that_cannot_be_imported_is_said(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> ModuleType:
        if name == "flash_attn_interface":
            raise ImportError("undefined symbol: _ZN3c105ErrorC2E")
        if name == "flash_attn.cute":
            raise ModuleNotFoundError("No module named 'cutlass'", name="cutlass")
        raise ModuleNotFoundError(f"No module named {name!r}", name="flash_attn")

    machine((9, 0))
    monkeypatch.setattr(kernels, "import_module", broken)
    name, why = attention_kernel("cuda", torch.float16)
    assert name == "torch-varlen"
    assert why == (
        "flash-attn 3 cannot be imported: undefined symbol: _ZN3c105ErrorC2E; "
        "flash-attn 4 cannot be imported: No module named 'cutlass'; flash-attn 2 is not installed"
    )
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    kernels.choose.cache_clear()
    name, why = attention_kernel("cuda", torch.float16)
    assert name == "sdpa-per-document"
    assert "torch's varlen_attn cannot be imported" in why


def call(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int, **options: Any) -> SimpleNamespace:
    return SimpleNamespace(cu=cu.tolist(), longest=longest, options=options, kv_heads=k.shape[1])


def test_every_version_of_flash_attn_is_called_as_it_wants_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, calls = [3, 5], []
    q, k, v = random_qkv(8, 4, 2, torch.float64)
    documents, expected = Documents(cu_seqlens(lengths)), dense(q, k, v, lengths)

    # The signatures are those of flash-attn 2.8.3, 3.0 (hopper/flash_attn_interface.py) and 4.0.0b36.
    def two(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
            causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
            return_attn_probs=False, block_table=None):  # fmt: skip
        assert (cu_seqlens_q is cu_seqlens_k, max_seqlen_q, causal) == (True, max_seqlen_k, True)
        calls.append(call(q, k, v, cu_seqlens_q, max_seqlen_q, dropout=dropout_p, deterministic=deterministic))
        return dense(q, k, v, lengths)

    def three(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
              softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
              window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None,
              deterministic=False, sm_margin=0, return_attn_probs=False):  # fmt: skip
        return two(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=causal,
                   deterministic=deterministic)  # fmt: skip

    def four(q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
             min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None,
             softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0,
             num_splits=1, pack_gqa=None, deterministic=False, return_lse=False):  # fmt: skip
        assert qv is None
        out = two(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=causal,
                  deterministic=deterministic)  # fmt: skip
        return out, torch.zeros(4, 8)

    for function in (two, three, four):
        assert torch.equal(kernels.flash(function, q, k, v, documents, 0.0), expected)
    kernels.flash(two, q, k, v, documents, 0.25)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    for function in (two, three, four):
        kernels.flash(function, q, k, v, documents, 0.0)
    assert all((one.cu, one.longest, one.kv_heads) == ([0, 3, 8], 5, 2) for one in calls)
    assert [one.options["dropout"] for one in calls] == [0, 0, 0, 0.25, 0, 0, 0]
    assert [one.options["deterministic"] for one in calls] == [False] * 4 + [True] * 3


def test_torchs_own_kernel_is_called_causally() -> None:
    lengths, calls = [3, 5], []
    q, k, v = random_qkv(8, 4, 2, torch.float64)

    def varlen(q, k, v, cu_q, cu_k, n_q, n_k, *, window_size, enable_gqa=False):  # type: ignore[no-untyped-def]
        assert enable_gqa == (k.shape != q.shape)
        assert (cu_q is cu_k, n_q, window_size) == (True, n_k, (-1, 0))
        calls.append(call(q, k, v, cu_q, n_q))
        return dense(q, k, v, lengths)

    def varlen_of_2_11(q, k, v, cu_q, cu_k, n_q, n_k, *, window_size):  # type: ignore[no-untyped-def]
        assert k.shape == q.shape
        return varlen(q, k, v, cu_q, cu_k, n_q, n_k, window_size=window_size)

    for function in (varlen, varlen_of_2_11):
        out = kernels.varlen(function, q, k, v, Documents(cu_seqlens(lengths)), 0.0)
        assert torch.allclose(out, dense(q, k, v, lengths))
    assert [(one.cu, one.longest, one.kv_heads) for one in calls] == [([0, 3, 8], 5, 2), ([0, 3, 8], 5, 4)]


def test_long_documents_equal_the_dense_mask() -> None:
    lengths = [700, 1, 1400, 43]
    ours = [x.requires_grad_() for x in random_qkv(sum(lengths), 2, 1, torch.float32)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    out, expected = packed_attention(*ours, Documents(cu_seqlens(lengths))), dense(*exact, lengths)
    assert relative_error(out, expected) < 1e-5
    weights = torch.randn(out.shape)
    out.backward(weights)
    expected.backward(weights.double())
    for a, b in zip(ours, exact, strict=True):
        assert relative_error(a.grad, b.grad) < 1e-5


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k = torch.zeros(2000, 1, 8), torch.zeros(2000, 1, 8)
    v = torch.ones(2000, 1, 8)
    out = packed_attention(q, k, v, Documents(cu_seqlens([1000, 1000])), dropout=0.25)
    last = out[[999, 1999], 0, 0]  # the mean over a thousand values that are 0 or 1 / 0.75
    assert ((last - 1).abs() < 0.1).all()
    assert last.unique().numel() == 2
    assert not torch.equal(out, torch.ones_like(out))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", ["flash-attn-2", "flash-attn-3", "flash-attn-4", "torch-varlen", "sdpa"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("lengths", [[17, 1, 64, 40], [1500, 548]], ids=["short", "long"])
def test_each_kernel_of_this_gpu_equals_the_dense_mask(kernel: str, kv_heads: int, lengths: list[int]) -> None:
    exact = [torch.randn(sum(lengths), n, 64, dtype=torch.float64).requires_grad_() for n in (4, kv_heads, kv_heads)]
    ours = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in exact]
    exact = [x.detach().cpu().double().requires_grad_() for x in ours]
    if kernel.startswith("flash"):
        function = kernels.flash_function(int(kernel[-1]))
        if isinstance(function, str):
            pytest.skip(f"{kernel} {function}")
        run = partial(kernels.flash, function)
    elif kernel == "torch-varlen":
        run = partial(kernels.varlen, pytest.importorskip("torch.nn.attention.varlen").varlen_attn)
    else:
        run = kernels.sdpa_per_document
    out = run(*ours, Documents(cu_seqlens(lengths).cuda(), max(lengths)), 0.0)
    expected = dense(*exact, lengths)
    assert relative_error(out.cpu(), expected) < 2e-2
    weights = torch.randn_like(expected).bfloat16()
    out.backward(weights.cuda())
    expected.backward(weights.double())
    for a, b in zip(ours, exact, strict=True):
        assert relative_error(a.grad.cpu(), b.grad) < 2e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_that_is_chosen_here_runs_in_float32_too() -> None:
    lengths = [17, 1, 64, 40]
    q, k, v = random_qkv(sum(lengths), 4, 2, torch.float32)
    out = packed_attention(q.cuda(), k.cuda(), v.cuda(), Documents(cu_seqlens(lengths).cuda()))
    assert relative_error(out.cpu(), dense(q.double(), k.double(), v.double(), lengths)) < 1e-5


def test_lengths_that_come_once_have_no_plan_of_cudnn() -> None:
    """torch's switches are those of every build: a CPU tells whether they are thrown, and thrown back."""
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with kernels.of_changing_shapes(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with kernels.of_changing_shapes(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled()
