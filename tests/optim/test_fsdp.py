"""Shares of parameters (fsdp) are updated as whole ones are; what a rank then holds, and when it sends gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor.debug import CommDebugMode

from evo_core.errors import ConfigError
from evo_core.optim.fsdp_adamw import FsdpAdamW
from evo_core.optim.groups import groups_of
from evo_core.optim.loss_scaler import LossScaler
from evo_core.optim.protocol import Optimizer
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.mesh import Mesh
from evo_core.parallel.sharded import shard
from evo_core.placement import Placed
from evo_core.train.held_memory import held_bytes
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

WIDTH, BLOCKS = 12, 3


class Net(nn.Module):
    """A type of a user's own: blocks of odd sizes, a parameter with fewer rows than ranks, one that is not trained, one
    that no loss depends on, one on which some ranks' losses do not."""

    skips = False

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Parameter(torch.randn(1, WIDTH))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 7), nn.Linear(7, WIDTH)) for _ in range(BLOCKS))
        self.fixed = nn.Parameter(torch.randn(5, WIDTH), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(3, 2))
        self.some = nn.Parameter(torch.randn(3, WIDTH))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first
        if not self.skips:
            x = x + self.some.sum(0)
        for block in self.blocks:
            x = x + block(x).tanh()
        return (x @ self.fixed.t()).float().square().mean()


def made(mesh: Mesh, dtype: torch.dtype, kind: type[Net] = Net, **settings: Any) -> tuple[Net, Any]:
    net = kind(dtype)
    if mesh.shards:
        shard(net, mesh)
        return net, FsdpAdamW(net, groups_of(net, mesh), mesh, **settings)
    return net, Zero1AdamW(groups_of(net, mesh), mesh.world, **settings)


def batch(step: int, number: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + number)
    return torch.randn(2, WIDTH, generator=generator).to(dtype)


def stepped(
    size: int, dtype: torch.dtype, fsdp: bool, scale: float = 1.0, kind: type[Net] = Net
) -> tuple[list[float], dict[str, Placed]]:
    """Norms of three steps of two micro-batches on each rank, and in the end the masters and moments."""
    mesh = mesh_of({"size": size, "fsdp": fsdp})  # type: ignore[arg-type]
    scaler = LossScaler(scale=scale, enabled=scale != 1.0)
    net, optimizer = made(mesh, dtype, kind, clip_grad_norm=0.5, weight_decay=0.1, scaler=scaler)
    net.skips = mesh.data.rank == 1 and hasattr(FSDPModule, "set_reduce_scatter_unused_params")
    norms = []
    for step in range(3):
        optimizer.begin()
        for number in range(2):
            loss = net(batch(step, number * mesh.data.size + mesh.data.rank, dtype)) / 2
            optimizer.backward(loss, last=number == 1)
        norms.append(optimizer.reduce(torch.zeros(0, dtype=torch.float64)).norm)
        optimizer.step(0.01, 0.95)
    optimizer.settle()
    return norms, optimizer.state()


@pytest.mark.parametrize(("ranks", "size"), [(2, 2), (4, 2), (4, 4)])
def test_it_updates_as_zero1_does(ranks: int, size: int) -> None:
    def all_off() -> list[float]:
        worst = []
        for dtype, allowed in ((torch.float64, 1e-12), (torch.bfloat16, 2e-3)):
            (norms, state), (expected, wanted) = (stepped(size, dtype, fsdp) for fsdp in (True, False))
            assert norms == pytest.approx(expected, rel=allowed)
            assert state.keys() == wanted.keys()
            for name, placed in wanted.items():
                assert state[name].placement == placed.placement
                worst.append(
                    float((state[name].local - placed.local).abs().max()) / allowed if placed.local.numel() else 0
                )
        return worst

    for worst in run_on_ranks(all_off, ranks):
        assert max(worst) < 1


class OneBlock(Net):
    """The same block several times."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.blocks = nn.ModuleList([self.blocks[0]] * BLOCKS)


class Tied(Net):
    """Blocks that have weights in common, with each other and with what is in none."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.outside = nn.Linear(WIDTH, 7, dtype=dtype)
        first, second, third = (next(block.children()) for block in self.blocks)
        second.weight, third.weight = first.weight, self.outside.weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.outside(x).square().mean()


class ListsOfLists(Net):
    """Blocks that are lists themselves, whose items are called one by one, and weights whose rows are no memory."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.blocks = nn.ModuleList(nn.ModuleList(block) for block in self.blocks)  # type: ignore[arg-type]
        self.first = nn.Parameter(torch.randn(WIDTH, 2, dtype=dtype).t())

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            up, down = block.children()
            x = x + down(up(x + self.first[0] - self.first[1])).tanh()
        return x.float().square().mean()


@pytest.mark.parametrize("kind", [OneBlock, Tied, ListsOfLists])
def test_models_of_other_forms(kind: type[Net]) -> None:
    def both() -> list[tuple[list[float], dict[str, Placed]]]:
        return [stepped(2, torch.float64, fsdp, kind=kind) for fsdp in (True, False)]

    for (norms, state), (expected, wanted) in run_on_ranks(both, 2):
        assert norms == pytest.approx(expected, rel=1e-12)
        assert state.keys() == wanted.keys()
        for name, placed in wanted.items():
            torch.testing.assert_close(state[name].local, placed.local, rtol=1e-12, atol=1e-14)


def test_an_overflow_on_one_rank_is_left_out_on_all() -> None:
    def updates() -> tuple[int, float]:
        mesh = mesh_of({"size": 2, "fsdp": True})  # type: ignore[arg-type]
        net, optimizer = made(mesh, torch.float16, scaler=LossScaler(scale=64.0, enabled=True, hysteresis=1))
        for spoilt in (True, False):
            x = batch(0, mesh.data.rank, torch.float16)
            optimizer.backward(net(x * torch.inf if spoilt and mesh.data.rank else x), last=True)
            optimizer.reduce(torch.zeros(0, dtype=torch.float64))
            assert optimizer.step(0.01, 0.95) is not spoilt
        return optimizer.updates, optimizer.scaler.scale

    assert run_on_ranks(updates, 2) == [(1, 32.0)] * 2


def test_a_rank_holds_its_shares_and_sends_gradients_after_each_block_of_each_micro_batch() -> None:
    def seen() -> tuple[dict[str, int], list[int], int]:
        mesh = mesh_of({"size": 2, "fsdp": True})  # type: ignore[arg-type]
        net, optimizer = made(mesh, torch.bfloat16)
        counts = []
        for number in range(3):
            with CommDebugMode() as mode:
                optimizer.backward(net(batch(0, number, torch.bfloat16)), last=number == 2)
            counts.append(sum(n for op, n in mode.get_comm_counts().items() if "reduce_scatter" in str(op)))
        held = held_bytes(net, optimizer)
        return held, counts, optimizer.share

    for held, counts, share in run_on_ranks(seen, 2):
        assert counts == [BLOCKS + 1] * 3
        fixed = 3 * WIDTH if held["parameters"] > 4 * (share + 2 * WIDTH) else 2 * WIDTH
        assert held["parameters"] == 4 * (share + fixed)
        assert held["gradients"] <= 4 * share
        assert held["moments"] >= 8 * share


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))


def test_a_scalar_is_refused() -> None:
    def said() -> str:
        with pytest.raises(ConfigError) as caught:
            shard(Scalar(), mesh_of({"size": 2, "fsdp": True}))  # type: ignore[arg-type]
        return str(caught.value)

    said_by_each = run_on_ranks(said, 2)
    assert said_by_each[0] == said_by_each[1]
    assert said_by_each[0].startswith("parallel.zero1.fsdp: temperature is a scalar, which has no rows to share")


def test_it_is_an_optimizer() -> None:
    assert all(callable(getattr(FsdpAdamW, name)) for name in vars(Optimizer) if callable(getattr(Optimizer, name)))
