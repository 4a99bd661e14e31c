"""Groups of several axes in one optimizer, against torch's own on one process: loss, gradients, norm, updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from evo_core.optim.groups import ParameterGroup, groups_of
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.mesh import Axis, Mesh
from evo_core.placement import Held, Placed, Placement, Rectangle, Span, span, tiling_fault
from tests.model.configs import tiny
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

STEPS, SAMPLES, LR, CLIP = 3, 8, 0.02, 0.5


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


class Reference:
    """What a loss gives on one process: a mean over two halves of the samples, which two data ranks see."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], loss: Callable[..., Tensor]) -> None:
        params = {name: nn.Parameter(value) for name, value in draw(shapes, 0).items()}
        adam = torch.optim.AdamW(params.values(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
        self.losses, self.norms = [], []
        for step in range(STEPS):
            adam.zero_grad()
            total = torch.stack([loss(params, *half) for half in halves(step)]).mean()
            total.backward()
            self.losses.append(total.item())
            self.grads = {name: param.grad.clone() for name, param in params.items() if param.grad is not None}
            self.norms.append(float(nn.utils.clip_grad_norm_(params.values(), CLIP)))
            adam.step()
        assert min(self.norms) > CLIP
        self.params = {name: param.detach() for name, param in params.items()}
        self.moments = {name: adam.state[param]["exp_avg_sq"] for name, param in params.items()}


def halves(step: int) -> list[tuple[Tensor, Tensor]]:
    made = draw({"x": (SAMPLES, 6), "y": (SAMPLES, 5)}, 100 + step)
    return list(zip(made["x"].chunk(2), made["y"].chunk(2), strict=True))


def optimized(groups: list[ParameterGroup], mesh: Mesh, loss: Callable[..., Tensor]) -> dict[str, Any]:
    """Train on this rank, with two data ranks; what it holds of everything in the end."""
    assert mesh.data.size == 2
    optimizer = Zero1AdamW(groups, mesh.world, clip_grad_norm=CLIP, bucket_size=40)
    params = {name: param for group in groups for name, param in group.parameters.items()}
    losses, norms = [], []
    for step in range(STEPS):
        optimizer.begin()
        here = loss(params, *halves(step)[mesh.data.rank])
        optimizer.backward(here, last=True)
        totals = torch.tensor([here.item()], dtype=torch.float64)
        norm, sums = optimizer.reduce(totals)
        norms.append(norm)
        losses.append(sums.item())
        grads = [(s.name, s.placed(b.grad / b.group.divisor)) for b in optimizer.buckets for s in b.slots]
        assert optimizer.step(LR, 0.95)
    placements = {name: placement for group in groups for name, placement in group.placements.items()}
    placed = [(name, Placed(param.detach(), placements[name])) for name, param in params.items()]
    state = optimizer.state()
    assert all(each.local.dtype == torch.float64 for each in state.values())
    return {
        "losses": losses,
        "norms": norms,
        "grads": parts(grads),
        "params": parts(placed),
        "moments": parts((name, state[f"exp_avg_sq.{name}"]) for name in params),
    }


def parts(placed: Iterable[tuple[str, Placed]]) -> dict[str, list[tuple[Rectangle, tuple[int, ...], Tensor]]]:
    return {name: [(piece.where, piece.ranks, view.clone()) for piece, view in each.pieces()] for name, each in placed}


def check(results: list[dict[str, Any]], reference: Reference, copies: int) -> None:
    """Every rank has the norm; pieces tile the whole tensors, and are those of one process on all that share them."""
    for result in results:
        assert result["norms"] == pytest.approx(reference.norms, rel=1e-12)
        assert result["losses"] == pytest.approx([loss * copies for loss in reference.losses], rel=1e-12)
    for kind in ("grads", "params", "moments"):
        expected: dict[str, Tensor] = getattr(reference, kind)
        assert set().union(*(result[kind] for result in results)) == set(expected)
        for name, whole in expected.items():
            held = [(rank, *part) for rank, result in enumerate(results) for part in result[kind].get(name, [])]
            for rank, where, ranks, values in held:
                assert (values - where.of(whole)).abs().max() < 1e-12, (kind, name, rank)
                assert sorted(r for r, w, *_ in held if w == where) == list(ranks)
            owned = [where for rank, where, ranks, _ in held if rank == ranks[0]]
            assert tiling_fault(tuple(whole.shape), owned) is None


class _Copy(torch.autograd.Function):
    """To each tensor rank; the gradients of all of them come back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.group = axis.group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Sum(torch.autograd.Function):
    """Over the tensor ranks, of which each goes on with the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, group=axis.group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class _Join(torch.autograd.Function):
    """Rows of all tensor ranks behind one another, of which each goes on with all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        rows = [torch.empty_like(x) for _ in range(axis.size)]
        dist.all_gather(rows, x.contiguous(), group=axis.group)
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.chunk(ctx.axis.size)[ctx.axis.rank], None


LAYER = {"up": (8, 6), "down": (5, 8), "fused": (10, 6), "scale": (6,), "gain": (1,), "shift": (6,)}


def layer_loss(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    x = (x + params["shift"]) * params["scale"]
    q, k = params["fused"].split([8, 2])
    h = torch.tanh(x @ params["up"].T) * (x @ q.T) * (x @ k.T).mean(1, keepdim=True)
    return ((h @ params["down"].T * params["gain"] - y) ** 2).mean()


def tensor_parallel(zero1: int, tensor: int) -> dict[str, Any]:
    """Matrices cut over the tensor ranks, one of them with rows that all have (as key heads that are fewer than ranks);
    two vectors with the same gradient on each, one with a part of it on each."""
    mesh = mesh_of(zero1, tensor=tensor)
    axis, everyone = mesh.tensor, mesh.world.ranks

    def loss(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        own = x.chunk(axis.size)[axis.rank] + params["shift"]
        x = _Copy.apply(_Join.apply(own, axis) * params["scale"], axis)
        q, k = params["fused"].split([8 // axis.size, 2])
        h = torch.tanh(x @ params["up"].T) * (x @ q.T) * (x @ _Copy.apply(k, axis).T).mean(1, keepdim=True)
        out = _Sum.apply(h @ params["down"].T, axis)
        return ((out * params["gain"] - y) ** 2).mean()

    placements = {
        "up": Placement.cut(LAYER["up"], 0, axis.rank, axis.size, mesh.data.ranks),
        "down": Placement.cut(LAYER["down"], 1, axis.rank, axis.size, mesh.data.ranks),
        "fused": Placement.joined(
            LAYER["fused"], 0, [Span(*span(8, axis.rank, axis.size), mesh.data.ranks), Span(8, 10, everyone)]
        ),
        **{name: Placement.whole(LAYER[name], everyone) for name in ("scale", "gain", "shift")},
    }
    first = not (mesh.zero.rank or mesh.replica.rank)

    def group(names: tuple[str, ...], reduce: tuple[Axis, ...], replica: tuple[Axis, ...]) -> ParameterGroup:
        parameters = {}
        for name in names:
            here = torch.empty(placements[name].local_shape, dtype=torch.float64)
            Placed(here, placements[name]).fill(draw(LAYER, 0)[name])
            if not first or (axis in replica and axis.rank):  # only the first rank of those that are alike has them
                here += 1
            parameters[name] = nn.Parameter(here)
        return ParameterGroup(
            parameters, reduce, mesh.data.size, mesh.zero, replica, {name: placements[name] for name in names}
        )

    data = (mesh.zero, mesh.replica)
    groups = [
        group(("up", "down", "fused"), data, (mesh.replica,)),
        group(("scale", "gain"), data, (mesh.replica, axis)),
        group(("shift",), (*data, axis), (mesh.replica, axis)),
    ]
    return optimized(groups, mesh, loss)


@pytest.mark.parity
@pytest.mark.parametrize("zero1", [1, 2])
def test_matrices_cut_and_vectors_whole_on_tensor_ranks(zero1: int) -> None:
    check(run_on_ranks(tensor_parallel, 4, zero1, 2), Reference(LAYER, layer_loss), copies=4)


STAGES = {"tied": (5, 6), "first": (6,), "last": (5, 5)}


def first_stage(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return ((x * params["first"] @ params["tied"].T - y) ** 2).mean()


def last_stage(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return (torch.tanh(y @ params["last"]) @ params["tied"]).square().mean()


def stages(zero1: int) -> dict[str, Any]:
    """A matrix that both stages use, each with a part of its gradient, and one parameter of each alone."""
    mesh = mesh_of(zero1, pipeline=2)
    own = ("first", "last")[mesh.pipeline.rank]
    whole = draw(STAGES, 0)
    data = (mesh.zero, mesh.replica)
    groups = [
        ParameterGroup(
            {own: nn.Parameter(whole[own])},
            reduce=data,
            divisor=mesh.data.size,
            zero=mesh.zero,
            replica=(mesh.replica,),
            placements={own: Placement.whole(STAGES[own], mesh.data.ranks)},
        ),
        ParameterGroup(
            {"tied": nn.Parameter(whole["tied"])},
            reduce=(*data, mesh.pipeline),
            divisor=mesh.data.size,
            zero=mesh.zero,
            replica=(mesh.replica, mesh.pipeline),
            placements={"tied": Placement.whole(STAGES["tied"], mesh.world.ranks)},
        ),
    ]
    return optimized(groups, mesh, (first_stage, last_stage)[mesh.pipeline.rank])


@pytest.mark.parity
@pytest.mark.parametrize("zero1", [1, 2])
def test_a_matrix_tied_over_two_stages(zero1: int) -> None:
    reference = Reference(STAGES, lambda *args: first_stage(*args) + last_stage(*args))
    check(run_on_ranks(stages, 4, zero1), reference, copies=2)


def _kinds(settings: dict[str, Any], mode: str) -> dict[str, tuple[Any, ...]]:
    """By parameter of a cut decoder the axes along which its gradient is summed, alike and repeated."""
    mesh = mesh_of(-1, tensor=4)
    model = build_parallel(tiny(vocab_size=64, num_layers=1, **settings), mesh, "cpu", mode=mode)
    kinds: dict[str, tuple[Any, ...]] = {}
    for group in groups_of(model, mesh):
        repeated = () if group.repeated is None else (group.repeated.size,)
        sums = tuple(axis.name for axis in group.reduce[2:])
        kinds |= {name: (sums, tuple(axis.name for axis in group.alike), repeated) for name in group.parameters}
    return kinds


def test_the_record_says_how_gradients_are_summed() -> None:
    own, alike, summed = ((), (), ()), ((), ("tensor",), ()), (("tensor",), (), ())
    qwen = {"model_type": "QWEN3", "num_kv_attention_heads": 2}
    for mode, norm in (("mtp", alike), ("msp", summed)):
        kinds = run_on_ranks(_kinds, 4, qwen, mode)[0]
        assert kinds["tok_embeddings.weight"] == kinds["output.weight"] == own
        assert kinds["layers.0.attention.wq.weight"] == kinds["layers.0.feed_forward.w2.weight"] == own
        assert kinds["layers.0.attention.wk.weight"] == kinds["layers.0.attention.wv.weight"] == ((), (), (2,))
        assert kinds["layers.0.attention.q_norm.weight"] == kinds["layers.0.attention.k_norm.weight"] == summed
        assert kinds["norm.weight"] == kinds["layers.0.ffn_norm.weight"] == norm
    one_key = run_on_ranks(_kinds, 4, {"num_kv_attention_heads": 1}, "mtp")[0]
    assert one_key["layers.0.attention.wqkv.weight"] == ((), (), (4,))


def _drifting() -> Tensor:
    """A whole parameter whose gradient is alike on the tensor ranks but for rounding, as sums in other orders are."""
    mesh = mesh_of(-1, tensor=2)
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    everywhere = Placement.whole((3,), mesh.world.ranks)
    model = nn.Module()
    model.weight = weight
    model.held = {"weight": Held((everywhere, everywhere), mesh.tensor.rank, partial=False)}  # type: ignore[assignment]
    optimizer = Zero1AdamW(groups_of(model, mesh), mesh.world)
    for step in range(STEPS):
        optimizer.begin()
        optimizer.backward((weight * (1 + step + 1e-9 * step * mesh.tensor.rank)).sum(), last=True)
        optimizer.reduce(torch.zeros(1, dtype=torch.float64))
        optimizer.step(LR, 0.95)
    return weight.detach()


def test_replicas_stay_alike_to_the_last_bit() -> None:
    first, *others = run_on_ranks(_drifting, 4)
    assert all(torch.equal(other, first) for other in others)
