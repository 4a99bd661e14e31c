"""Chunked projection and cross-entropy against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from evo_core.model.ops.loss import linear_cross_entropy
from tests.model.configs import relative_error

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def problem(tokens: int = 13, size: int = 6, vocab: int = 11, dtype: torch.dtype = torch.float64) -> tuple:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocab, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (tokens,), generator=generator)
    labels[::4] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_rows", [None, 1, 4, 13, 100])
def test_equals_cross_entropy(smoothing: float, chunk_rows: int | None) -> None:
    hidden, weight, labels = problem()
    loss, nll, hit = linear_cross_entropy(hidden, weight, labels, label_smoothing=smoothing, chunk_rows=chunk_rows)
    grads = torch.autograd.grad(3 * loss, (hidden, weight))
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    expected_grads = torch.autograd.grad(3 * expected, (hidden, weight))
    assert torch.allclose(loss, expected, rtol=1e-12, atol=1e-14)
    for a, b in zip(grads, expected_grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
    assert torch.allclose(nll, F.cross_entropy(logits, labels, reduction="none"), rtol=1e-12, atol=1e-14)
    assert torch.equal(hit, logits.argmax(-1) == labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradcheck_in_float64(smoothing: float) -> None:
    hidden, weight, labels = problem()
    assert gradcheck(
        lambda h, w: linear_cross_entropy(h, w, labels, label_smoothing=smoothing, chunk_rows=5)[0],
        (hidden, weight),
    )


def test_gradient_of_one_alone() -> None:
    hidden, weight, labels = problem()
    expected = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, labels), (hidden, weight))
    linear_cross_entropy(hidden, weight.detach(), labels)[0].backward()
    assert torch.allclose(hidden.grad, expected[0])
    linear_cross_entropy(hidden.detach(), weight, labels)[0].backward()
    assert torch.allclose(weight.grad, expected[1])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])])
def test_the_number_of_labels_is_not_rounded_to_16_bit(device: str) -> None:
    hidden, weight, labels = problem(tokens=300, size=32, vocab=50, dtype=torch.bfloat16)
    hidden, weight = (x.detach().to(device).requires_grad_() for x in (hidden, weight))
    linear_cross_entropy(hidden, weight, labels.to(device))[0].backward()
    once = hidden.grad
    hidden.grad = None
    count = int((labels != -100).sum())
    assert torch.tensor(1 / count).bfloat16().float() != torch.tensor(1 / count)
    (count * linear_cross_entropy(hidden, weight, labels.to(device))[0]).backward()
    assert torch.equal(once, (hidden.grad.float() / count).bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    hidden, weight, labels = problem(tokens=300, size=32, vocab=50, dtype=dtype)
    loss, nll, _ = linear_cross_entropy(hidden, weight, labels, chunk_rows=16)
    assert loss.dtype == nll.dtype == torch.float32
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, labels)
    assert abs(loss.item() - expected.item()) < 1e-2 * expected.item()
    (1024 * loss).backward()
    (1024 * expected).backward()
    assert relative_error(hidden.grad, exact[0].grad) < 2e-2
    assert relative_error(weight.grad, exact[1].grad) < 2e-2


def test_small_float16_gradients_survive_until_the_loss_scale_reaches_them() -> None:
    hidden, weight, labels = problem(tokens=4096, size=8, vocab=16, dtype=torch.float16)
    (2**16 * linear_cross_entropy(hidden, weight, labels)[0]).backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    (2**16 * F.cross_entropy(exact[0] @ exact[1].T, labels)).backward()
    assert relative_error(hidden.grad, exact[0].grad) < 5e-3


def test_a_sequence_without_labels_costs_nothing() -> None:
    hidden, weight, labels = problem()
    loss, nll, hit = linear_cross_entropy(hidden, weight, labels.fill_(-100))
    assert loss.item() == 0
    assert not nll.any()
    assert not hit.any()
    loss.backward()
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, labels = problem(dtype=torch.float32)
    loss, nll, _ = linear_cross_entropy(1e4 * hidden, weight, labels)
    assert loss.isfinite()
    assert nll.isfinite().all()


def test_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    tallest = 0
    linear = F.linear

    def watched(*args: torch.Tensor) -> torch.Tensor:
        nonlocal tallest
        out = linear(*args)
        tallest = max(tallest, out.shape[0])
        return out

    monkeypatch.setattr(F, "linear", watched)
    hidden, weight, labels = problem(tokens=1000, vocab=20_000, dtype=torch.float32)
    linear_cross_entropy(hidden, weight, labels)[0].backward()
    assert tallest == 256


def test_nothing_is_kept_without_gradients() -> None:
    hidden, weight, labels = problem()
    with torch.no_grad():
        loss, _, _ = linear_cross_entropy(hidden, weight, labels)
    assert loss.grad_fn is None
