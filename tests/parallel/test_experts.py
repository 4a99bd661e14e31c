"""Experts over ranks: tokens reach the same experts as on one rank and come back to their places, gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from evo_core.model import Decoder, build_model, count_parameters
from evo_core.model.cutting import all_stages
from evo_core.model.ops.moe import Dispatch, ExpertLayer
from evo_core.model.ops.routing import Routing
from evo_core.optim.groups import groups_of
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.collectives import counting
from evo_core.parallel.experts import DealtDispatch, keep_own_experts
from tests.model.configs import tiny
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

EXPERTS, HIDDEN, TOP_K = 4, 8, 2
SETTINGS: dict[str, Any] = {"model_type": "INTERNLM_MoE", "num_experts": EXPERTS, "moe_use_residual": True}


def experts() -> nn.ModuleDict:
    torch.manual_seed(1)
    made = {str(e): nn.Linear(HIDDEN, HIDDEN, bias=False, dtype=torch.float64) for e in range(EXPERTS)}
    return nn.ModuleDict(made)


def even(rank: int, tokens: int) -> Tensor:
    return torch.stack([(torch.arange(tokens) + rank) % EXPERTS, (torch.arange(tokens) + rank + 1) % EXPERTS], 1)


def to_one(rank: int, tokens: int) -> Tensor:
    """Every token of every rank, so that the other ranks and all but one expert have none."""
    return torch.full((tokens, TOP_K), EXPERTS - 1)


CASES = {
    "even": (even, lambda rank, chosen: torch.ones_like(chosen, dtype=torch.bool)),
    "all to one expert": (to_one, lambda rank, chosen: torch.ones_like(chosen, dtype=torch.bool)),
    "a rank drops all": (even, lambda rank, chosen: torch.full_like(chosen, rank != 0, dtype=torch.bool)),
    "every rank drops all": (even, lambda rank, chosen: torch.zeros_like(chosen, dtype=torch.bool)),
    "some dropped": (even, lambda rank, chosen: (torch.arange(len(chosen)).unsqueeze(1) + chosen + rank) % 3 > 0),
}
"""Which experts the tokens of a rank ask for, and which of them have room."""


def batch(rank: int, case: str) -> tuple[Tensor, Routing]:
    """A rank's tokens, of other numbers on each, and where they go."""
    tokens, (choose, room) = 5 + 2 * rank, CASES[case]
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    chosen = choose(rank, tokens)
    kept = room(rank, chosen)
    weights = (x[:, :TOP_K].abs() + 0.5) * kept
    return x.requires_grad_(), Routing(chosen, weights.detach().requires_grad_(), kept, x.new_zeros(()))


def through(dispatch: Dispatch, here: nn.ModuleDict, case: str, ranks: range) -> list[tuple[Tensor, ...]]:
    """Of each rank's tokens what comes of them, and the gradients of them and of their weights."""
    found = []
    for rank in ranks:
        x, routing = batch(rank, case)
        out = dispatch(x, routing, here)
        out.square().sum().backward()
        found.append((out.detach(), x.grad, routing.weights.grad))
    return found  # type: ignore[return-value]


def dealt(case: str) -> tuple[Any, dict[str, Tensor], list[str], int]:
    rank, mesh = dist.get_rank(), mesh_of(experts=EXPERTS)
    assert mesh.experts is not None
    here, each = experts(), EXPERTS // mesh.experts.cut.size
    for number in range(EXPERTS):
        if number // each != mesh.experts.cut.rank:
            del here[str(number)]
    order: list[str] = []
    for name, parameter in here.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    with counting() as traffic:
        (found,) = through(DealtDispatch(mesh.experts.cut), here, case, range(rank, rank + 1))
    grads = {name: p.grad for name, p in here.named_parameters() if p.grad is not None}
    places = [str(list(here).index(name.partition(".")[0])) for name in order]
    return found, grads, places, traffic.bytes["all_to_all_rows"]


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_those_of_one_rank(case: str, ranks: int) -> None:
    """Up to rounding: products are of other numbers of rows. And a rank sends what it must, and no more."""
    alone = experts()
    plain = Dispatch()
    plain.calls_all = True
    wanted = through(plain, alone, case, range(ranks))
    everyone = run_on_ranks(dealt, ranks, case)
    assert len({tuple(order) for _, _, order, _ in everyone}) == 1  # of gradients, by the places of experts
    for rank, (found, grads, order, sent) in enumerate(everyone):
        assert len(grads) == len(order) == EXPERTS // ranks
        for one, other in zip(found, wanted[rank], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, alone.get_parameter(name).grad, rtol=1e-13, atol=1e-13)
        # Out and back, of what is not for a rank's own experts, in the forward pass and in the backward pass.
        rows = 0
        for other in range(ranks):
            routing = batch(other, case)[1]
            owners = routing.experts[routing.kept] // (EXPERTS // ranks)
            rows += int((owners != rank).sum()) if other == rank else int((owners == rank).sum())
        assert sent == 2 * rows * HIDDEN * 8


def record() -> dict[str, Any]:
    """What a rank of four holds with experts over two: of each parameter its ranks, and its group."""
    mesh = mesh_of(2, experts=EXPERTS, expert=2)
    model = build_parallel(tiny(vocab_size=64, **SETTINGS), mesh, "cpu")
    assert isinstance(model, Decoder) and mesh.experts is not None
    names = [name for name, _ in model.named_parameters()]
    groups = {
        name: (group.zero.ranks, [axis.ranks for axis in group.reduce if axis.size > 1], group.divisor)
        for group in groups_of(model, mesh)
        for name in group.parameters
    }
    ranks = {name: model.held[name].placement.pieces[0].ranks for name in names}
    whole = [name for name, _ in all_stages(model).named_parameters()]
    return {"ranks": ranks, "groups": groups, "count": count_parameters(model), "whole": whole}


def test_who_holds_what() -> None:
    one = build_model(tiny(vocab_size=64, **SETTINGS))
    names = [name for name, _ in one.named_parameters()]
    for rank, found in enumerate(run_on_ranks(record, 4)):
        own = {str(2 * (rank % 2)), str(2 * (rank % 2) + 1)}
        of_expert = {n: n.partition("wrapped_experts.")[2].partition(".")[0] for n in names if "wrapped_experts" in n}
        assert [*found["ranks"]] == [name for name in names if of_expert.get(name, "0" if "0" in own else "2") in own]
        assert found["whole"] == names
        assert found["count"] == sum(parameter.numel() for parameter in one.parameters())
        same = (rank % 2, rank % 2 + 2)
        for name, (zero, reduced, divisor) in found["groups"].items():
            assert divisor == 4
            if name in of_expert:
                # A ZeRO group is a run of two neighbours, so that no two ranks in one have the same experts.
                assert (found["ranks"][name], zero, reduced) == (same, (rank,), [same]), name
            else:
                assert found["ranks"][name] == (0, 1, 2, 3), name


def test_what_is_left_keeps_its_name() -> None:
    def left() -> list[str]:
        mesh = mesh_of(experts=EXPERTS)
        model = build_model(tiny(vocab_size=64, **SETTINGS), device="meta")
        assert mesh.experts is not None
        kept = keep_own_experts(model, mesh.experts.cut)
        layer = next(module for module in model.modules() if isinstance(module, ExpertLayer))
        assert {*layer.wrapped_experts.parameters()} <= kept
        return [*layer.wrapped_experts]

    assert run_on_ranks(left, 2) == [["0", "1"], ["2", "3"]]
