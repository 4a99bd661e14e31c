"""16-bit products in float32 where the CPU has none of its own, and blocks that torch compiles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from evo_core.model import build_model, compile_blocks
from evo_core.model.dtypes import product_dtype
from evo_core.model.ops import attention_kernels, linear, loss
from evo_core.model.ops.attention import attention_kernel, packed_attention
from evo_core.model.ops.documents import Documents
from tests.model.configs import packed, randomise, relative_error, tiny


@pytest.fixture(params=[False, True], ids=["as it is", "widened"])
def widened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Both kinds of CPU, whichever this one is."""

    def asked(dtype: torch.dtype, device_type: str) -> torch.dtype:
        return torch.float32 if request.param and dtype in (torch.bfloat16, torch.float16) else dtype

    for module in (linear, loss, attention_kernels):
        monkeypatch.setattr(module, "product_dtype", asked)
    attention_kernels.choose.cache_clear()
    yield request.param
    attention_kernels.choose.cache_clear()


def test_only_16_bit_on_a_cpu_is_ever_widened() -> None:
    assert product_dtype(torch.bfloat16, "cuda") == torch.bfloat16
    assert product_dtype(torch.float64, "cpu") == torch.float64
    assert product_dtype(torch.float32, "cpu") == torch.float32
    assert product_dtype(torch.bfloat16, "cpu") in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("shape", [(3,), (40,), (2, 20)], ids=["few rows", "many rows", "batches"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_and_its_gradients(widened: bool, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, out = (
        torch.randn(*s, generator=generator).to(dtype) for s in [(*shape, 24), (8, 24), (8,), (*shape, 8)]
    )
    results = []
    for compute in (dtype, torch.float64):
        leaves = [t.detach().to(compute, copy=True).requires_grad_() for t in (x, weight, bias)]
        y = linear.linear(*leaves) if compute == dtype else F.linear(*leaves)
        y.backward(out.to(compute))
        assert y.dtype == compute and all(leaf.grad is not None and leaf.grad.dtype == compute for leaf in leaves)
        results.append([y, *(leaf.grad for leaf in leaves)])
    rounding = torch.finfo(dtype).eps
    for low, exact in zip(*results, strict=True):
        assert relative_error(low, exact) < 2 * rounding


def test_attention_and_its_gradients(widened: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, out = (torch.randn(30, heads, 16, generator=generator).bfloat16() for heads in (4, 2, 2, 4))
    results = []
    for compute in (torch.bfloat16, torch.float64):
        leaves = [t.detach().to(compute, copy=True).requires_grad_() for t in (q, k, v)]
        y = packed_attention(*leaves, Documents(torch.tensor([0, 7, 30], dtype=torch.int32)))
        y.backward(out.to(compute))
        assert y.dtype == compute
        results.append([y, *(leaf.grad for leaf in leaves)])
    for low, exact in zip(*results, strict=True):
        assert relative_error(low, exact) < 0.02
    assert ("torch.float32" in attention_kernel("cpu", torch.bfloat16)[1]) is widened


def test_loss_and_its_gradients(widened: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(50, 16, generator=generator).bfloat16(),
        torch.randn(37, 16, generator=generator).bfloat16(),
    )
    labels = torch.randint(37, (50,), generator=generator)
    labels[::7] = -100
    results = []
    for compute in (torch.bfloat16, torch.float64):
        leaves = [t.detach().to(compute, copy=True).requires_grad_() for t in (hidden, weight)]
        value, nll, _ = loss.linear_cross_entropy(*leaves, labels, chunk_rows=16)
        value.backward()
        results.append([value, nll, *(leaf.grad for leaf in leaves)])
    for low, exact in zip(*results, strict=True):
        assert relative_error(low, exact) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [0.0, 1.0])
def test_compiled_blocks_give_the_same(checkpoint: float) -> None:
    """With packs of other documents, which must not be compiled anew each."""
    plain, compiled = (build_model(tiny(checkpoint=checkpoint)) for _ in range(2))
    randomise(plain)
    compiled.load_state_dict(plain.state_dict())
    assert compile_blocks(compiled) == 2
    assert list(compiled.state_dict()) == list(plain.state_dict())
    with torch._dynamo.config.patch(error_on_recompile=False):
        for seed, lengths in enumerate(([30, 10], [1, 2, 37], [40])):
            for model in (plain, compiled):
                model.zero_grad()
                model(**packed(lengths, seed=seed)).loss.backward()
            for name, parameter in plain.named_parameters():
                assert relative_error(compiled.get_parameter(name).grad, parameter.grad) < 1e-5, name
