"""What a training step on a CPU does by parts and blocks, against torch's own operations on whole tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evo_core.model.ops.attention import packed_attention
from evo_core.model.ops.blocked_attention import by_blocks, fits
from evo_core.model.ops.cache_rows import as_on_a_gpu
from evo_core.model.ops.documents import Documents
from evo_core.model.ops.linear import linear
from evo_core.model.ops.norm import Norm
from evo_core.model.ops.rope import rotary, rotate
from tests.model.configs import relative_error


def sdpa(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    batch = [x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v)]
    out = F.scaled_dot_product_attention(*batch, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(0, 1)


def qkv(tokens: int, heads: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """Slices of one projection, as a fused one gives them."""
    torch.manual_seed(tokens)
    fused = torch.randn(tokens, heads + 2 * kv_heads, 16, dtype=torch.float64).to(dtype)
    return [x.requires_grad_() for x in fused.detach().split((heads, kv_heads, kv_heads), 1)]


def with_gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(0)
    return [out, *torch.autograd.grad(out, leaves, torch.randn(out.shape, dtype=torch.float64).to(out.dtype))]


@pytest.mark.parametrize(("documents", "length"), [(1, 200), (3, 64), (2, 65), (1, 130)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_attention_by_blocks_is_attention(documents: int, length: int, heads: int, kv_heads: int) -> None:
    leaves = qkv(documents * length, heads, kv_heads, torch.float64)
    ours = with_gradients(by_blocks(*leaves, length), leaves)
    expected = with_gradients(sdpa(*leaves, length), leaves)
    assert all(relative_error(a, b) < 1e-12 for a, b in zip(ours, expected, strict=True))


def test_attention_by_blocks_in_parts_of_documents_and_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = qkv(3 * 70, 6, 3, torch.float64)
    whole = with_gradients(by_blocks(*leaves, 70), leaves)
    for scores in (1, 2 * 2 * 64 * 70, 4 * 2 * 64 * 70):
        monkeypatch.setattr("evo_core.model.ops.blocked_attention._SCORES", scores)
        parts = with_gradients(by_blocks(*leaves, 70), leaves)
        assert all(relative_error(a, b) < 1e-12 for a, b in zip(parts, whole, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_by_blocks_rounds_no_more_than_torchs_kernel(dtype: torch.dtype) -> None:
    leaves = qkv(512, 4, 2, dtype)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected = with_gradients(sdpa(*exact, 512), exact)
    ours, theirs = (with_gradients(f(*leaves, 512), leaves) for f in (by_blocks, sdpa))
    for a, b, c in zip(ours, theirs, expected, strict=True):
        assert a.dtype == dtype
        norms = [float((x.double() - c).norm().detach() / c.norm().detach()) for x in (a, b)]
        assert norms[0] < 1.3 * norms[1]


def test_documents_of_all_lengths_in_one_pack() -> None:
    lengths = [3, 200, 200, 40, 1100, 193]
    leaves = qkv(sum(lengths), 2, 1, torch.float32)
    documents = Documents(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32))
    assert documents.runs == [(1, 3), (2, 200), (1, 40), (1, 1100), (1, 193)]
    assert [fits(length, torch.float32) for _, length in documents.runs] == [False, True, False, False, True]
    ours = with_gradients(packed_attention(*leaves, documents), leaves)
    alone = [sdpa(*part, part[0].shape[0]) for part in zip(*(x.split(lengths) for x in leaves), strict=True)]
    expected = with_gradients(torch.cat(alone), leaves)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(ours, expected, strict=True))


def test_generation_and_evaluation_keep_to_the_kernel_of_each_document() -> None:
    """What a document's tokens come to must not depend on its neighbours, not by a bit."""
    leaves = qkv(600, 2, 2, torch.float32)
    with torch.no_grad():
        both = packed_attention(*leaves, Documents(torch.tensor([0, 300, 600], dtype=torch.int32)))
        first = packed_attention(*(x[:300] for x in leaves), Documents(torch.tensor([0, 300], dtype=torch.int32)))
    assert torch.equal(both[:300], first)


@pytest.mark.parametrize(("dtype", "out"), [(torch.float64, torch.float64), (torch.bfloat16, torch.bfloat16),
                                            (torch.float32, torch.bfloat16)])  # fmt: skip
def test_norm_by_parts(dtype: torch.dtype, out: torch.dtype) -> None:
    norm = Norm("rmsnorm", 256, 1e-5, out_dtype=out, dtype=torch.promote_types(dtype, torch.float32))
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5000, 256).to(dtype).requires_grad_()  # two parts
    ours = with_gradients(norm(x), [x, norm.weight])
    with as_on_a_gpu():
        expected = with_gradients(norm(x), [x, norm.weight])
    bound = 1e-2 if out == torch.bfloat16 else 1e-12
    assert all(a.dtype == b.dtype and relative_error(a, b) < bound for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("shape", [(64,), (0, 64), (2, 0, 64), (2, 3, 4, 64)])
def test_norm_of_any_shape(shape: tuple[int, ...]) -> None:
    norm = Norm("rmsnorm", 64, 1e-5, out_dtype=torch.float64, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    ours = with_gradients(norm(x), [x, norm.weight])
    with as_on_a_gpu():
        expected = with_gradients(norm(x), [x, norm.weight])
    assert all(a.shape == b.shape and torch.allclose(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_by_parts(interleaved: bool, dtype: torch.dtype) -> None:
    x = torch.randn(4200, 2, 2, 64).to(dtype)  # two parts
    rotation = rotary(torch.arange(4200), 64, 10000.0, interleaved=interleaved, dtype=dtype)
    with as_on_a_gpu():
        whole = rotate(x, rotation)
    assert torch.equal(rotate(x, rotation), whole)


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as on a processor where oneDNN is the faster one."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr("evo_core.model.ops.linear.prefers_onednn", lambda x, weight: True)


@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("shape", [(130, 24), (2, 70, 24)])
@pytest.mark.parametrize("bias", [False, True])
def test_products_by_onednn(shape: tuple[int, ...], bias: bool) -> None:
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(40, 24, requires_grad=True)
    leaves = [x, weight, *([torch.randn(40, requires_grad=True)] if bias else [])]
    ours = with_gradients(linear(x, weight, leaves[2] if bias else None), leaves)
    expected = with_gradients(F.linear(*leaves), leaves)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(ours, expected, strict=True))


FAULTS = """
import resource, torch
from evo_core.train.host_memory import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**21) for _ in range(20)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults()
print(faults())
"""


def faults(**environment: str) -> int:
    """Page faults of a process that asks for 40 960 pages which it has freed before."""
    environment = {"PATH": os.environ["PATH"], **environment}
    command = [sys.executable, "-c", FAULTS]
    return int(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone keeps freed memory when told to")
def test_freed_memory_is_used_again() -> None:
    assert faults() < 10_000  # some blocks are cut anew to lie on huge pages


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone keeps freed memory when told to")
@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_MMAP_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072")]
)
def test_what_the_environment_says_of_freed_memory_comes_first(name: str, value: str) -> None:
    assert faults(**{name: value, "THP_MEM_ALLOC_ENABLE": "0"}) > 30_000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone keeps freed memory when told to")
def test_another_tunable_of_glibc_changes_nothing() -> None:
    assert faults(GLIBC_TUNABLES="glibc.malloc.arena_max=4") < 10_000


def test_autocast_is_heard_whatever_the_processor() -> None:
    """A user's own: products are in its type, with few rows and with many, here and where oneDNN is not preferred."""
    weight = torch.randn(40, 24, requires_grad=True)
    for rows in (5, 500):
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(torch.randn(rows, 24), weight).dtype == torch.bfloat16


class Called(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("by_onednn")
def test_a_backward_pass_in_two_calls_makes_each_product_once() -> None:
    """As a zero-bubble schedule does: the gradient of the input in one call, that of the weight in another."""
    x, weight = torch.randn(130, 24, requires_grad=True), torch.randn(40, 24, requires_grad=True)
    y = linear(x * 1, weight)
    for leaf, made in ((x, "mkldnn::_linear_pointwise"), (weight, "aten::mm")):
        with Called() as called:
            torch.autograd.grad(y, [leaf], torch.ones_like(y), retain_graph=True)
        products = {name: called.names[name] for name in ("mkldnn::_linear_pointwise", "aten::mm")}
        assert products == {"mkldnn::_linear_pointwise": 0, "aten::mm": 0} | {made: 1}
