"""The loss of a vocabulary that several ranks share, beside the loss of the whole one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from evo_core.model.ops.head import Head
from evo_core.model.ops.loss import linear_cross_entropy
from evo_core.parallel.tensor.exchange import Exchange
from evo_core.parallel.tensor.head import ParallelHead
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

TOKENS, HIDDEN, VOCABULARY = 24, 8, 20


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and labels: ignored ones, labels in every part, and two equal rows in different parts."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=torch.float64, generator=generator)
    # Whole numbers, whose products are exact: two equal rows are equally likely by whatever order a CPU sums in.
    weight = (30 * torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64, generator=generator)).round()
    weight[17] = weight[2]
    labels = torch.arange(TOKENS) % VOCABULARY
    labels[::5] = -100
    best = (hidden @ weight.t()).argmax(-1)
    labels[1:4] = best[1:4]
    hidden[6], hidden[7] = weight[2], weight[2]  # rows 2 and 17 are both the likeliest
    labels[6], labels[7] = 2, 17
    return hidden, weight, labels


def _head(mode: str, gathers_logits: bool, norm_head: bool, weight: Tensor) -> ParallelHead:
    count = dist.get_world_size()
    exchange = Exchange.of(mode, mesh_of(-1, tensor=count).tensor)
    settings: dict[str, Any] = {"norm_head": norm_head, "grad_scale": 0.3, "dtype": torch.float64}
    head = ParallelHead(HIDDEN, VOCABULARY, exchange, gathers_logits=gathers_logits, **settings)
    head.weight.data.copy_(weight.chunk(count)[dist.get_rank()])
    return head


def _loss(mode: str, gathers_logits: bool, smoothing: float) -> tuple[Tensor, ...]:
    hidden, weight, labels = _inputs()
    head = _head(mode, gathers_logits, smoothing > 0, weight)
    own = hidden if mode == "mtp" else hidden.chunk(dist.get_world_size())[dist.get_rank()]
    own = own.clone().requires_grad_()
    loss, nll, hit = head.loss(own, labels, smoothing)
    (3 * loss).backward()
    assert own.grad is not None and head.weight.grad is not None
    return loss.detach(), nll, hit, own.grad, head.weight.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gathers_logits", [False, True])
@pytest.mark.parametrize("mode", ["mtp", "msp"])
@pytest.mark.parametrize("count", [2, 4])
def test_a_shared_vocabulary_has_the_loss_of_the_whole(
    mode: str, gathers_logits: bool, smoothing: float, count: int
) -> None:
    hidden, weight, labels = _inputs()
    hidden.requires_grad_()
    head = Head(HIDDEN, VOCABULARY, norm_head=smoothing > 0, grad_scale=0.3, dtype=torch.float64)
    head.weight.data.copy_(weight)
    loss, nll, hit = head.loss(hidden, labels, smoothing)
    (3 * loss).backward()
    assert hidden.grad is not None and head.weight.grad is not None
    ranks = run_on_ranks(_loss, count, mode, gathers_logits, smoothing)
    for own_loss, own_nll, own_hit, _, _ in ranks:
        torch.testing.assert_close(own_loss, loss.detach(), rtol=1e-14, atol=0)
        torch.testing.assert_close(own_nll, nll, rtol=1e-13, atol=1e-11)  # differences of logits of several thousand
        assert torch.equal(own_hit, hit)
    d_hidden = [grad for *_, grad, _ in ranks]
    whole = torch.cat(d_hidden) if mode == "msp" else d_hidden[0]
    torch.testing.assert_close(whole, hidden.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.cat([grad for *_, grad in ranks]), head.weight.grad, rtol=1e-12, atol=1e-14)
    assert hit[6] != hit[7], "the test has no two logits that are equal"


def _logits(mode: str) -> Tensor:
    hidden, weight, _ = _inputs()
    own = hidden if mode == "mtp" else hidden.chunk(dist.get_world_size())[dist.get_rank()]
    return _head(mode, False, False, weight).logits(own).detach()


def test_logits_are_whole_on_every_rank() -> None:
    hidden, weight, _ = _inputs()
    for mode in ("mtp", "msp"):
        for logits in run_on_ranks(_logits, 2, mode):
            torch.testing.assert_close(logits, hidden @ weight.t())


def _narrow(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Far-off logits in a narrow type: parts whose highest logits lie wide apart."""
    exchange = Exchange.of("mtp", mesh_of(-1, tensor=2).tensor)
    head = ParallelHead(1, 4, exchange, gathers_logits=False, dtype=dtype)
    weight = torch.tensor([[400.0], [399.0], [-400.0], [-399.0]], dtype=dtype)
    head.weight.data.copy_(weight.chunk(2)[dist.get_rank()])
    hidden = torch.tensor([[1.0], [-1.0], [0.5]], dtype=dtype, requires_grad=True)
    loss, nll, _ = head.loss(hidden, torch.tensor([2, 0, 1]))
    loss.backward()
    assert hidden.grad is not None
    return nll, hidden.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_whose_logits_lie_wide_apart(dtype: torch.dtype) -> None:
    weight = torch.tensor([[400.0], [399.0], [-400.0], [-399.0]], dtype=dtype)
    hidden = torch.tensor([[1.0], [-1.0], [0.5]], dtype=dtype, requires_grad=True)
    loss, nll, _ = linear_cross_entropy(hidden, weight, torch.tensor([2, 0, 1]))
    loss.backward()
    for own_nll, grad in run_on_ranks(_narrow, 2, dtype):
        assert torch.isfinite(own_nll).all()
        torch.testing.assert_close(own_nll, nll)
        torch.testing.assert_close(grad, hidden.grad, rtol=0.02, atol=1.0)
