"""Parameters of any shape, type and layout in memory are updated as one process updates them, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.optim.optimizers import zero1_adamw
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks


def odd_net() -> nn.Module:
    """A scalar, empty ones, fewer rows than ranks, rows that do not divide, two that do not lie row by row."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Module()
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        values = {
            "scalar": torch.randn((), generator=generator),
            "no_rows": torch.randn(0, 3, generator=generator),
            "no_columns": torch.randn(3, 0, generator=generator),
            "one": torch.randn(1, 5, generator=generator),
            "odd": torch.randn(7, 3, generator=generator),
            "transposed": torch.randn(5, 6, generator=generator).to(dtype).t(),
            "permuted": torch.randn(3, 5, 2, generator=generator).to(dtype).permute(1, 2, 0),
        }
        for name, value in values.items():
            net.register_parameter(f"{name}_{str(dtype)[6:]}", nn.Parameter(value.to(dtype)))
    return net


def stepped(net: nn.Module, zero1: int, **settings: Any) -> list[Tensor]:
    optimizer = zero1_adamw(net, mesh_of(zero1), weight_decay=0.01, **settings)
    order = list(net.parameters())
    for number in range(3):
        optimizer.begin()
        for param in order:
            optimizer.wait_for([param])
        loss = sum(((param.double() - number) ** 2).sum() for param in order)
        assert isinstance(loss, Tensor)
        optimizer.backward(loss, last=True)
        optimizer.reduce(torch.zeros(0, dtype=torch.float64))
        assert optimizer.step(0.02, 0.95)
    optimizer.settle()
    return [param.detach().clone() for param in order]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_odd_parameters(ranks: int) -> None:
    expected = run_on_ranks(lambda: stepped(odd_net(), 1), 1)[0]
    before = list(odd_net().parameters())
    assert all(not torch.equal(a, b) for a, b in zip(expected, before, strict=True) if a.numel())
    order = [name for name, _ in odd_net().named_parameters()]

    def every_way() -> list[list[Tensor]]:
        return [
            stepped(odd_net(), ranks, bucket_size=size, overlap=on, overlap_params=on, gather_size=gather, order=names)
            for size, on, gather, names in ((0, True, 1, order), (30, False, 10, ()), (10**9, True, 6, order))
        ]

    for ways in run_on_ranks(every_way, ranks):
        for way in ways:
            assert all(torch.equal(a, b) for a, b in zip(way, expected, strict=True))
