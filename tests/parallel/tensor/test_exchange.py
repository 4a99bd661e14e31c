"""What the ranks send each other: forward by hand, and backward as the transpose of forward."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from evo_core.parallel.tensor.exchange import Exchange
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

ROWS, COLUMNS = 8, 4


def _of_rank(shape: tuple[int, ...], rank: int, salt: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * rank + salt))


def _exchange(mode: str) -> Exchange:
    return Exchange.of(mode, mesh_of(-1, tensor=dist.get_world_size()).tensor)


def _there_and_back(mode: str, name: str, shape: tuple[int, ...], salt: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """What comes out on this rank, and of a gradient of the result, its own or (salt) alike on all, what comes back."""
    exchange, rank = _exchange(mode), dist.get_rank()
    x = _of_rank(shape, rank).requires_grad_()
    out = getattr(exchange, name)(x)
    grad = _of_rank(tuple(out.shape), rank if salt is None else 0, 5 if salt is None else salt)
    kept = grad.clone()
    out.backward(grad)
    assert torch.equal(grad, kept), "the gradient that came in was written into"
    assert x.grad is not None
    return out.detach(), grad, x.grad


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(("mode", "name"), [("mtp", "enter"), ("mtp", "leave"), ("msp", "enter"), ("msp", "leave")])
def test_parts_of_a_sum(mode: str, name: str, count: int) -> None:
    shape = (ROWS // count if (mode, name) == ("msp", "enter") else ROWS, COLUMNS)
    inputs = [_of_rank(shape, rank) for rank in range(count)]
    # Between layers of which each rank holds a part, a gradient differs from rank to rank where values are alike.
    alike = (mode, name) == ("mtp", "leave")
    ranks = run_on_ranks(_there_and_back, count, mode, name, shape, 3 if alike else None)
    total = torch.stack(inputs).sum(0)
    for rank, (out, _, back) in enumerate(ranks):
        grads = [grad for _, grad, _ in ranks]
        if name == "enter":
            assert torch.equal(out, torch.cat(inputs) if mode == "msp" else inputs[rank])
            whole = torch.stack(grads).sum(0)
            torch.testing.assert_close(back, whole.chunk(count)[rank] if mode == "msp" else whole)
        else:
            torch.testing.assert_close(out, total.chunk(count)[rank] if mode == "msp" else total)
            assert torch.equal(back, torch.cat(grads) if mode == "msp" else grads[0])


@pytest.mark.parametrize("count", [2, 4])
def test_what_every_rank_computes_alike(count: int) -> None:
    part = ROWS // count
    for rank, (out, grad, back) in enumerate(run_on_ranks(_there_and_back, count, "fsp", "gather_rows", (part, 3), 4)):
        assert torch.equal(out, torch.cat([_of_rank((part, 3), other) for other in range(count)]))
        assert torch.equal(back, grad.chunk(count)[rank])
    for rank, (out, grad, back) in enumerate(run_on_ranks(_there_and_back, count, "mtp", "gather_columns", (5, 2), 4)):
        assert torch.equal(out, torch.cat([_of_rank((5, 2), other) for other in range(count)], dim=1))
        assert torch.equal(back, grad.chunk(count, dim=1)[rank])
    ranks = run_on_ranks(_there_and_back, count, "mtp", "sum_gradients", (5, 2), None)
    for rank, (out, _, back) in enumerate(ranks):
        assert torch.equal(out, _of_rank((5, 2), rank))
        torch.testing.assert_close(back, torch.stack([grad for _, grad, _ in ranks]).sum(0))


@pytest.mark.parametrize("count", [2, 4])
def test_columns_become_rows(count: int) -> None:
    ranks = run_on_ranks(_there_and_back, count, "msp", "columns_to_rows", (ROWS, 3), None)
    whole = torch.cat([_of_rank((ROWS, 3), rank) for rank in range(count)], dim=1)
    grads = torch.cat([grad for _, grad, _ in ranks])
    for rank, (out, _, back) in enumerate(ranks):
        assert torch.equal(out, whole.chunk(count)[rank])
        assert torch.equal(back, grads.chunk(count, dim=1)[rank])
