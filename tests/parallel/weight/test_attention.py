"""Attention of which each rank does some heads, against all of it on one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from evo_core.model.ops.attention import CausalAttention
from evo_core.model.ops.documents import Documents
from evo_core.parallel.weight.attention import HeadsAttention, heads_to_rows, rows_to_heads
from tests.parallel.weight.jobs import isp
from tests.ranks import run_on_ranks

HEADS, WIDTH = 8, 6
ENDS = [0, 3, 4, 11, 16]
"""Of documents, which begin and end within the rows of a rank."""


def drawn(heads: int, salt: int) -> Tensor:
    return torch.randn(ENDS[-1], heads, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(salt))


def documents() -> Documents:
    return Documents(torch.tensor(ENDS, dtype=torch.int32))


def of_one_process(kv_heads: int) -> list[Tensor]:
    """The output, and the gradients of q, k and v."""
    q, k, v = (drawn(heads, salt).requires_grad_() for salt, heads in enumerate((HEADS, kv_heads, kv_heads)))
    out = CausalAttention(0)(q, k, v, documents())
    out.backward(drawn(HEADS, 3))
    return [out.detach(), *(each.grad for each in (q, k, v) if each.grad is not None)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_heads_over_the_whole_sequence(ranks: int) -> None:
    """With key/value heads fewer than the ranks, as many, and more."""
    of_each = (1, 2, 4, 8)

    def body() -> list[list[Tensor]]:
        axis, found = isp(ranks, 1).tensor, []
        rank = axis.rank
        for kv_heads in of_each:
            leaves = [drawn(heads, salt) for salt, heads in enumerate((HEADS, kv_heads, kv_heads))]
            q, k, v = (each.chunk(ranks)[rank].clone().requires_grad_() for each in leaves)
            out = HeadsAttention(CausalAttention(0), axis)(q, k, v, documents())
            out.backward(drawn(HEADS, 3).chunk(ranks)[rank])
            found.append([out.detach(), *(each.grad for each in (q, k, v) if each.grad is not None)])
        return found

    wanted = [of_one_process(kv_heads) for kv_heads in of_each]
    for rank, found in enumerate(run_on_ranks(body, ranks)):
        for got, want in zip(found, wanted, strict=True):
            for part, whole in zip(got, want, strict=True):
                torch.testing.assert_close(part, whole.chunk(ranks)[rank], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_rows_and_heads_are_exchanged_there_and_back(ranks: int) -> None:
    """What goes to a rank are its heads of all rows, in the order of the sequence, of each of several things."""

    def body() -> None:
        axis = isp(ranks, 1).tensor
        wholes = [drawn(heads, salt) for salt, heads in enumerate((2 * ranks, ranks, 3 * ranks))]
        rows = tuple(each.chunk(ranks)[axis.rank] for each in wholes)
        there = rows_to_heads(axis, rows)
        for part, whole in zip(there, wholes, strict=True):
            assert torch.equal(part, whole.chunk(ranks, dim=1)[axis.rank])
        back = heads_to_rows(axis, torch.cat(there, dim=1), [2, 1, 3])
        assert all(map(torch.equal, back, rows))

    run_on_ranks(body, ranks)


def test_no_heads_of_a_cache() -> None:
    """Generation leaves the sequence whole."""

    def body() -> None:
        attention = HeadsAttention(CausalAttention(0), isp(2, 1).tensor)
        with pytest.raises(ValueError, match="sequence whole"):
            attention(drawn(8, 0), drawn(8, 1), drawn(8, 2), documents(), cache=object())
        dist.barrier()

    run_on_ranks(body, 2)
