"""Updated parameters on their way: when they are sent for, who waits for them, and what a rank holds in memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from evo_core.optim.loss_scaler import LossScaler
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.train.optimizer import wait_where_read
from tests.optim.optimizers import zero1_adamw
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

NOTHING = torch.zeros(0, dtype=torch.float64)

SMALL = 600
"""Bytes of the optimizer's counts, a batch and a loss."""


def net_of(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).to(dtype)


def step(net: nn.Module, optimizer: Zero1AdamW, of: float = 1.0) -> bool:
    """One update by a loss that is `of` times as large; whether it was made."""
    dtype = next(net.parameters()).dtype
    optimizer.begin()
    optimizer.backward(net(torch.ones(2, 6, dtype=dtype)).float().square().mean() * of, last=True)
    optimizer.reduce(NOTHING)
    return optimizer.step(0.1, 0.95)


def overlapped(net: nn.Module, *, gather_size: int = 8, scaler: LossScaler | None = None) -> Zero1AdamW:
    mesh = mesh_of(-1)
    optimizer = zero1_adamw(net, mesh, overlap_params=True, gather_size=gather_size, scaler=scaler)
    wait_where_read(net, optimizer)
    return optimizer


def test_a_state_dict_has_the_last_update() -> None:
    def body(overlaps: bool) -> list[Tensor]:
        net = net_of(torch.float32)
        optimizer = overlapped(net) if overlaps else zero1_adamw(net, mesh_of(-1))
        assert step(net, optimizer)
        publishing = optimizer.publishing
        assert (publishing.taken < len(publishing.chunks)) == overlaps
        return [value.clone() for value in net.state_dict().values()]

    for on, off in zip(run_on_ranks(body, 2, True), run_on_ranks(body, 2, False), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(on, off, strict=True))


def test_a_skipped_update_sends_nothing() -> None:
    def body() -> tuple[list[str], list[str]]:
        net = net_of(torch.float16)
        optimizer = overlapped(net, scaler=LossScaler(scale=8.0, hysteresis=1))
        with optimizer.publishing.recording() as skipped:
            assert not step(net, optimizer, float("inf"))
            optimizer.settle()
        with optimizer.publishing.recording() as made:
            assert step(net, optimizer)
            optimizer.settle()
        return [event.what for event in skipped], [event.what for event in made]

    for skipped, made in run_on_ranks(body, 2):
        assert skipped == []
        assert made == ["gather", "arrive"] * (len(made) // 2) and len(made) > 8


def test_what_nothing_has_read_is_there_at_the_next_update() -> None:
    """A parameter that no pass reads is never asked for: it comes with the next update at the latest."""

    def body() -> bool:
        net = net_of(torch.float32)
        net.register_parameter("aside", nn.Parameter(torch.ones(25)))
        optimizer = zero1_adamw(net, mesh_of(-1), overlap_params=True, gather_size=4, weight_decay=0.5)
        for _ in range(3):
            optimizer.wait_for(parameter for name, parameter in net.named_parameters() if name != "aside")
            step(net, optimizer)
        here, first = net.get_parameter("aside").detach(), net.get_parameter("aside").detach().clone()
        assert not torch.equal(here, torch.ones(25))
        dist.broadcast(first, 0)
        return torch.equal(here, first)

    assert run_on_ranks(body, 2) == [True, True]


def held() -> dict[int, int]:
    """Bytes of each piece of memory that a tensor of this process lies in."""
    tensors = (each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter))
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def stated(
    parameters: Iterable[int], dtype: torch.dtype, zero1: int, *, bucket_size: int, gather_size: int
) -> dict[str, int]:
    """Bytes that a rank holds of parameters whose numbers of rows divide by the ZeRO ranks."""
    sizes, b = list(parameters), dtype.itemsize
    state = 4 * sum(sizes) // zero1
    buckets, filled = [0], 0
    for size in reversed(sizes):
        if filled and filled + size > bucket_size:
            buckets.append(0)
            filled = 0
        buckets[-1] += size
        filled += size
    return {
        "parameters": 0 if zero1 == 1 and dtype == torch.float32 else b * sum(sizes),
        "gradients": state if zero1 == 1 else 4 * sum(sizes) + state,
        "master": state,
        "moments": 2 * state,
        "buffer": 0 if zero1 == 1 else b * min(max(buckets), gather_size // zero1 * zero1),
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_a_rank_holds(ranks: int) -> None:
    """Counted over all tensors there are, after two steps, in bytes.

    Of P parameters in b bytes each, Z ranks that share the optimizer's state::

        parameters      b P             none of their own in float32 with Z = 1: they are their master values
        gradients       4 P + 4 P / Z   the sums of micro-batches, and the rank's share of the sum over ranks;
                                        with Z = 1 they are one: 4 P
        master values   4 P / Z
        moments         8 P / Z
        buffer          b x the smaller of all_gather_size (rounded down to a multiple of Z) and the largest bucket,
                        for each type of parameters; none with Z = 1

    The number of rows of each parameter is rounded up to a multiple of Z in all but the first line. Between steps
    there is nothing else: no second copy of the parameters in their own type.
    """

    def body(dtype: torch.dtype, overlap: bool, bucket_size: int, gather_size: int) -> tuple[int, int]:
        mesh, before = mesh_of(ranks), held()
        net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 256), nn.Linear(256, 64)).to(dtype)
        optimizer = zero1_adamw(
            net, mesh, overlap=overlap, overlap_params=overlap, bucket_size=bucket_size, gather_size=gather_size
        )
        for _ in range(2):
            optimizer.begin()
            optimizer.backward(net(torch.ones(2, 64, dtype=dtype)).float().mean(), last=True)
            optimizer.reduce(NOTHING)
            assert optimizer.step(0.1, 0.95)
            optimizer.settle()
        sizes = [p.numel() for p in net.parameters()]
        parts = stated(sizes, dtype, ranks, bucket_size=bucket_size, gather_size=gather_size)
        assert optimizer.publishing.nbytes == parts["buffer"]
        gc.collect()
        for _ in range(5000):  # a thread of gloo's may hold the last message a moment longer
            found = sum(size for address, size in held().items() if address not in before)
            if found < sum(parts.values()) + SMALL:
                break
            os.sched_yield()
        return found, sum(parts.values())

    def every_way() -> list[tuple[int, int]]:
        return [
            body(dtype, overlap, bucket_size, gather_size)
            for dtype in (torch.float32, torch.bfloat16)
            for overlap in (False, True)
            for bucket_size, gather_size in ((10**9, 10**9), (10**9, 5000), (20_000, 10**9))
        ]

    for ways in run_on_ranks(every_way, ranks):
        for found, expected in ways:
            assert expected <= found < expected + SMALL
