"""The optimizer against torch's own, over every ZeRO size; norm, clipping, overflow, 16-bit types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from evo_core.errors import ConfigError
from evo_core.optim.grad_norm import sum_of_squares
from evo_core.optim.loss_scaler import LossScaler
from evo_core.train.optimizer import wait_where_read
from tests.optim.optimizers import zero1_adamw
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

MICRO_BATCHES, STEPS, LR, CLIP = 4, 5, 0.02, 0.5
MANY_STEPS = 50


def small_net(dtype: torch.dtype) -> nn.Module:
    """Odd sizes, a parameter smaller than the number of ranks, one that is frozen and one that nothing uses."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.LayerNorm(3)).to(dtype)
    net.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=dtype)))
    net.register_parameter("frozen", nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False))
    return net


def micro_batches(step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    make = torch.randn(MICRO_BATCHES, 6, 8, generator=generator, dtype=torch.float64)
    return [(m[:, :5], m[:, 5:]) for m in make]


def reference(clip: float = CLIP, steps: int = STEPS) -> tuple[list[float], list[torch.Tensor]]:
    """One process, torch's AdamW and clipping, in float64."""
    net = small_net(torch.float64)
    params = [p for p in net.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(params, lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    norms = []
    for step in range(steps):
        net.zero_grad(set_to_none=False)
        for x, y in micro_batches(step):
            (((net(x) - y) ** 2).mean() / MICRO_BATCHES).backward()
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        norms.append(float(nn.utils.clip_grad_norm_(params, clip if clip else float("inf"))))
        adam.step()
    return norms, [p.detach() for p in net.parameters()]


def trained(
    zero1: int, bucket_size: int, overlap: bool, clip: float = CLIP, gather_size: int = 10**9, steps: int = STEPS
) -> tuple[list[float], list[torch.Tensor]]:
    mesh = mesh_of(zero1)
    net = small_net(torch.float64)
    if mesh.data.rank:  # every rank gets the first one's parameters
        with torch.no_grad():
            for p in net.parameters():
                p.add_(mesh.data.rank)
    net.get_parameter("frozen").data.fill_(1.0)
    optimizer = zero1_adamw(
        net,
        mesh,
        weight_decay=0.01,
        bucket_size=bucket_size,
        clip_grad_norm=clip,
        overlap=overlap,
        overlap_params=overlap,
        gather_size=gather_size,
    )
    wait_where_read(net, optimizer)
    norms = []
    for step in range(steps):
        own = micro_batches(step)[mesh.data.rank :: mesh.data.size]
        optimizer.begin()
        totals = torch.zeros(1, dtype=torch.float64)
        for i, (x, y) in enumerate(own):
            loss = ((net(x) - y) ** 2).mean() / len(own)
            totals += 1
            optimizer.backward(loss, last=i == len(own) - 1)
        norm, sums = optimizer.reduce(totals)
        norms.append(norm)
        assert sums.item() == MICRO_BATCHES  # the caller's sums travel with the norm
        assert optimizer.step(LR, 0.95)
    optimizer.settle()
    return norms, [p.detach().clone() for p in net.parameters()]


@pytest.mark.parity
@pytest.mark.parametrize("steps", [STEPS, pytest.param(MANY_STEPS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("zero1", [1, 2, 4, -1])
def test_equals_one_process(ranks: int, zero1: int, steps: int) -> None:
    if zero1 > ranks:
        pytest.skip("more ZeRO ranks than ranks")
    norms, params = reference(steps=steps)

    def every_way() -> list[Any]:
        return [
            trained(zero1, bucket, overlap, gather_size=gather, steps=steps)
            for bucket, overlap, gather in ((10**9, False, 10**9), (20, True, 5), (1, True, 1), (10**9, True, 7))
        ]

    for ways in run_on_ranks(every_way, ranks):
        for got_norms, got_params in ways:
            assert got_norms == pytest.approx(norms, rel=1e-12)
            for got, expected in zip(got_params, params, strict=True):
                assert (got - expected).abs().max() < 1e-12


def test_no_clipping_where_it_is_off_or_not_reached() -> None:
    for clip in (0.0, 1e9):
        norms, params = reference(clip)
        got_norms, got_params = run_on_ranks(trained, 2, -1, 10**9, False, clip)[0]
        assert got_norms == pytest.approx(norms, rel=1e-12)
        assert all((a - b).abs().max() < 1e-12 for a, b in zip(got_params, params, strict=True))


def alone(body: Callable[[], Any]) -> Any:
    return run_on_ranks(body, 1)[0]


def test_an_overflow_skips_the_update_everywhere_and_lowers_the_scale() -> None:
    def body() -> tuple[bool, bool, float, int, bool]:
        mesh = mesh_of(-1)
        net = nn.Linear(4, 4, bias=False).half()
        scaler = LossScaler(scale=8.0, hysteresis=1)
        optimizer = zero1_adamw(net, mesh, scaler=scaler, clip_grad_norm=1.0)
        before = net.weight.detach().clone()
        optimizer.begin()
        x = torch.full((1, 4), 60000.0 if dist.get_rank() == 1 else 1.0, dtype=torch.float16)
        optimizer.backward(net(x).float().mean() * 10, last=True)
        optimizer.reduce(torch.zeros(0, dtype=torch.float64))
        skipped = not optimizer.step(0.1, 0.95)
        same = torch.equal(net.weight, before)
        updates = optimizer.updates
        optimizer.begin()  # and the step after it is clean
        optimizer.backward(net(torch.ones(1, 4, dtype=torch.float16)).float().mean(), last=True)
        optimizer.reduce(torch.zeros(0, dtype=torch.float64))
        return skipped, same, optimizer.scaler.scale, updates, optimizer.step(0.1, 0.95)

    assert run_on_ranks(body, 2) == [(True, True, 4.0, 0, True)] * 2


def test_the_scale_is_divided_out_with_and_without_clipping() -> None:
    def body(clip: float, scale: float) -> tuple[float, torch.Tensor]:
        mesh = mesh_of(1)
        torch.manual_seed(1)
        net = nn.Linear(4, 4).bfloat16()
        scaler = LossScaler(scale=scale)
        optimizer = zero1_adamw(net, mesh, scaler=scaler, clip_grad_norm=clip, eps=1e-3)
        optimizer.begin()
        optimizer.backward(net(torch.ones(2, 4, dtype=torch.bfloat16)).float().square().mean(), last=True)
        norm = optimizer.reduce(torch.zeros(0, dtype=torch.float64)).norm
        optimizer.step(0.1, 0.95)
        return norm, optimizer.master.clone()

    for clip in (0.0, 0.1):
        plain = run_on_ranks(body, 1, clip, 1.0)[0]
        scaled = run_on_ranks(body, 1, clip, 2.0**16)[0]
        assert scaled[0] == pytest.approx(plain[0], rel=1e-6)
        assert torch.allclose(scaled[1], plain[1], atol=1e-6)


def test_sixteen_bit_parameters_have_a_float32_master() -> None:
    """Steps too small for bfloat16 add up in the master and show in the parameter in the end."""

    def body() -> tuple[torch.dtype, float, float]:
        mesh = mesh_of(-1)
        net = nn.Linear(3, 1, bias=False).bfloat16()
        net.weight.data.fill_(1.0)
        optimizer = zero1_adamw(net, mesh, weight_decay=0.0)
        for _ in range(20):
            optimizer.begin()
            optimizer.backward(net(torch.ones(1, 3, dtype=torch.bfloat16)).sum(), last=True)
            optimizer.reduce(torch.zeros(0, dtype=torch.float64))
            optimizer.step(1e-3, 0.95)
        return optimizer.master.dtype, float(net.weight[0, 0]), float(optimizer.master.max())

    for dtype, weight, _ in run_on_ranks(body, 2):
        assert dtype == torch.float32
        assert weight == pytest.approx(0.98, abs=0.004)


def test_accumulation_is_in_float32() -> None:
    """256 micro-batches of gradient 1 and one of 1/4: bfloat16 would lose the quarter."""

    def body() -> float:
        mesh = mesh_of(-1)
        net = nn.Linear(1, 1, bias=False).bfloat16()
        optimizer = zero1_adamw(net, mesh)
        optimizer.begin()
        for i in range(257):
            x = torch.ones(1, 1, dtype=torch.bfloat16) * (0.25 if i == 256 else 1.0)
            optimizer.backward(net(x).sum(), last=i == 256)
        return optimizer.reduce(torch.zeros(0, dtype=torch.float64)).norm

    assert alone(body) == pytest.approx(256.25)


def test_mixed_types_share_one_optimizer() -> None:
    """Norms kept in float32 in a bfloat16 model."""

    def body() -> bool:
        mesh = mesh_of(-1)
        net = nn.Sequential(nn.Linear(3, 3).bfloat16(), nn.LayerNorm(3))
        optimizer = zero1_adamw(net, mesh)
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.begin()
        optimizer.backward(net[1](net[0](torch.randn(2, 3).bfloat16()).float()).square().mean(), last=True)
        optimizer.reduce(torch.zeros(0, dtype=torch.float64))
        optimizer.step(0.1, 0.95)
        names = set(optimizer.state())
        assert "master.0.weight" in names  # the float32 norm is its own master
        assert "master.1.weight" not in names
        return all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))

    assert run_on_ranks(body, 2) == [True, True]


def test_gradients_that_come_without_a_hook_are_taken() -> None:
    """A zero-bubble schedule sets `.grad` itself; a hook hears of none of it, or of some micro-batches alone."""

    def norm(hooked: int, overlap: bool) -> float:
        net = small_net(torch.float64)
        mesh = mesh_of(-1)
        optimizer = zero1_adamw(net, mesh, bucket_size=20, overlap=overlap)
        own = micro_batches(0)[mesh.data.rank :: mesh.data.size]
        params = [param for param in net.parameters() if param.requires_grad]
        optimizer.begin()
        for i, (x, y) in enumerate(own):
            loss = ((net(x) - y) ** 2).mean() / len(own)
            if i < hooked:
                optimizer.backward(loss, last=False)
                continue
            for param, grad in zip(params, torch.autograd.grad(loss, params, allow_unused=True), strict=True):
                if grad is not None:
                    param.grad = grad if param.grad is None else param.grad + grad
        return optimizer.reduce(torch.zeros(0, dtype=torch.float64)).norm

    def every_way() -> list[float]:
        return [norm(hooked, overlap) for hooked in (0, 1, 2) for overlap in (False, True)]

    for norms in run_on_ranks(every_way, 2):
        assert norms == pytest.approx([reference()[0][0]] * 6, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_parameter_that_does_not_lie_row_by_row(dtype: torch.dtype) -> None:
    def stepped(transposed: bool) -> torch.Tensor:
        net, start = nn.Module(), torch.arange(15, dtype=dtype).view(5, 3)
        weight = nn.Parameter(start.t().contiguous().t() if transposed else start.clone())
        net.register_parameter("weight", weight)
        optimizer = zero1_adamw(net, mesh_of(-1))
        for _ in range(2):
            optimizer.begin()
            optimizer.backward((weight * start).square().sum(), last=True)
            optimizer.reduce(torch.zeros(0, dtype=torch.float64))
            assert optimizer.step(LR, 0.95)
        return weight.detach()

    for ranks in (1, 2):
        run_on_ranks(lambda: torch.testing.assert_close(stepped(True), stepped(False), rtol=0, atol=0), ranks)


class RunTwice(nn.Module):
    """One layer at two depths, recomputed at each in a backward pass of its own: autograd hands its gradient over
    twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared = (nn.Linear(4, 4, dtype=torch.float64) for _ in range(2))

    def forward(self, x: torch.Tensor, *, reentrant: bool | None) -> torch.Tensor:
        x = self.first(x)
        for _ in range(2):
            x = self.shared(x) if reentrant is None else checkpoint(self.shared, x, use_reentrant=reentrant)
            x = torch.tanh(x)
        return x


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("bucket_size", [1, 1000])
def test_a_gradient_that_comes_in_parts_is_whole_or_refused(ranks: int, bucket_size: int) -> None:
    def norms(overlap: bool, reentrant: bool | None) -> list[float]:
        net, mesh = RunTwice(), mesh_of(-1)
        optimizer = zero1_adamw(net, mesh, bucket_size=bucket_size, overlap=overlap)
        x, norms = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4), []
        for _ in range(2):
            optimizer.begin()
            for last in (False, True):
                optimizer.backward(net(x, reentrant=reentrant).square().mean(), last=last)
            norms.append(optimizer.reduce(torch.zeros(0, dtype=torch.float64)).norm)
            optimizer.step(LR, 0.95)
        return norms

    def every_way() -> bool:
        right = pytest.approx(norms(False, None), rel=1e-12)
        for overlap, reentrant in ((False, True), (False, False), (True, False)):
            assert norms(overlap, reentrant) == right
        if ranks > 1 and bucket_size == 1:  # reduced before the second part comes
            with pytest.raises(ConfigError, match=r"overlap_sync_grad: the gradient of shared\.\w+ came in parts"):
                norms(True, True)
            return True
        return norms(True, True) == right

    assert all(run_on_ranks(every_way, ranks))


def test_a_model_without_anything_to_train_is_refused() -> None:
    def refused() -> str:
        with pytest.raises(ConfigError, match="no parameter of this model is trained") as caught:
            zero1_adamw(nn.Linear(2, 2).requires_grad_(False), mesh_of(-1))
        return str(caught.value)

    assert run_on_ranks(refused, 1)[0].startswith("model_type: ")


def test_shares_are_rows_and_may_be_empty() -> None:
    """Of 5 rows four ranks own 2, 2, 1 and none; of one row, a vector of 3 and a scalar the last ranks own nothing."""

    def body() -> dict[str, tuple[list[int], list[str]]]:
        net = nn.Module()
        for name, shape in {"five": (5, 2), "one": (1, 6), "vector": (3,), "scalar": ()}.items():
            net.register_parameter(name, nn.Parameter(torch.ones(shape)))
        optimizer = zero1_adamw(net, mesh_of(-1))
        moments = {name[8:]: placed for name, placed in optimizer.state().items() if name.startswith("exp_avg.")}
        assert optimizer.share == sum(placed.local.numel() for placed in moments.values())
        return {
            name: (list(placed.local.shape), [str(piece.where) for piece, _ in placed.pieces()])
            for name, placed in moments.items()
        }

    results = run_on_ranks(body, 4)
    assert [result["five"] for result in results] == [
        ([2, 2], ["[0:2, 0:2]"]),
        ([2, 2], ["[2:4, 0:2]"]),
        ([1, 2], ["[4:5, 0:2]"]),
        ([0, 2], []),
    ]
    assert [result["one"] for result in results] == [([1, 6], ["[0:1, 0:6]"])] + [([0, 6], [])] * 3
    assert [result["vector"][1] for result in results] == [["[0:1]"], ["[1:2]"], ["[2:3]"], []]
    assert [result["scalar"] for result in results] == [([], ["[]"])] + [([0], [])] * 3


def test_sum_of_squares() -> None:
    for numel in (0, 5, 4096, 10_000):
        vector = torch.randn(numel)
        assert float(sum_of_squares(vector)) == pytest.approx(float(vector.double().square().sum()), rel=1e-6)
    assert not torch.isfinite(sum_of_squares(torch.tensor([1.0, float("inf")])))
    assert torch.isnan(sum_of_squares(torch.tensor([1.0, float("nan")])))
