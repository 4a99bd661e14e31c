"""Mistakes with experts over ranks that others have made are found; see `tests/parity/test_broken.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.model.ops.moe import Gate
from evo_core.model.ops.routing import Routing
from evo_core.optim import zero1
from evo_core.optim.grad_norm import counted
from evo_core.optim.groups import ParameterGroup
from evo_core.parallel import experts
from evo_core.parity.deviation import FLOAT64_BAR
from evo_core.parity.job import Settings
from evo_core.parity.matrix import compared
from evo_core.parity.whole import joined
from tests.parity.bench import Bench, broken, nothing, on_documents
from tests.parity.test_broken import other_groups
from tests.replaced import replaced

pytestmark = pytest.mark.parity

DEALT: Settings = {"expert": {"size": 2}, "zero1": {"size": 1}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from on_documents(tmp_path_factory.mktemp("documents"))


def is_of_experts(group: ParameterGroup) -> bool:
    return any("wrapped_experts" in name for name in group.parameters)


def divided_by_those_that_hold_it(group: ParameterGroup) -> ParameterGroup:
    """As if the tokens of the other data ranks had not been added up already."""
    return replace(group, divisor=group.zero.size) if is_of_experts(group) else group


def not_in_the_norm(model: Any) -> Any:
    """Only what all data ranks have is counted."""

    def some(grad: Any, pieces: Any, divisor: int) -> Any:
        pieces = list(pieces)
        whole = all(len(piece.ranks) == 2 for piece, _ in pieces)
        return counted(grad, pieces, divisor) if whole else []

    return replaced(zero1, "counted", some)


def first_experts_everywhere(model: Any) -> None:
    """The second rank has read the first rank's."""
    for block in model.blocks.values():
        for parameter in block.mlp.moe_layer.wrapped_experts.parameters():
            dist.broadcast(parameter.data, 0)


def gradients_of_own_tokens_alone(model: Any) -> Any:
    """What goes to other ranks' experts comes back without a gradient."""
    as_it_is = experts._ToRanks.apply

    def apply(x: Any, sent: Any, received: Any, axis: Any) -> Any:
        own = slice(sum(sent[: axis.rank]), sum(sent[: axis.rank + 1]))
        rows = torch.zeros(len(x), 1, dtype=torch.bool)
        rows[own] = True
        return as_it_is(torch.where(rows, x, x.detach()), sent, received, axis)

    return replaced(experts._ToRanks, "apply", apply)


def all_to_the_last_expert(model: Any) -> Any:
    """No mistake: a router that sends every token there, so that all ranks but one have nothing to do."""
    return replaced(Gate, "forward", to_the_last)


def to_the_last(gate: Any, x: Any, **_: Any) -> Any:
    logits = gate.wg(x.to(gate.wg.weight.dtype))
    last = torch.full((len(x), 1), logits.shape[1] - 1)
    kept = torch.ones_like(last, dtype=torch.bool)
    return Routing(last, logits.softmax(-1).gather(1, last), kept, logits.square().mean())


def test_nothing_is_found_where_nothing_is_broken(bench: Bench) -> None:
    assert bench.why("moe", DEALT, nothing) is None


@pytest.mark.parametrize(
    "way", [{}, pytest.param({"model": {"checkpoint": True}}, marks=pytest.mark.slow)], ids=["kept", "recomputed"]
)
def test_a_rank_that_no_token_comes_to_holds_up_no_other(bench: Bench, way: Settings) -> None:
    """While gradients are summed as they are made, so that a missing one would be waited for."""
    reference = joined(bench.alone.run(broken, bench.job("moe", {}), all_to_the_last_expert, ()))
    cfg = bench.job("moe", DEALT, {"hybrid_zero_optimizer": {"overlap_sync_grad": True}}, way)
    found, why = compared(reference, bench.ranks.run(broken, cfg, all_to_the_last_expert, ()), FLOAT64_BAR)
    assert why is None and found is not None
    others = [g for name, g in reference[0].gradients.items() if re.search(r"wrapped_experts\.[012]\.", name)]
    assert others and not any(gradient.any() for gradient in others)


def test_a_divisor_of_the_wrong_ranks(bench: Bench) -> None:
    why = bench.why("moe", DEALT, other_groups, divided_by_those_that_hold_it)
    assert why is not None and re.search("step 0: .*it is 2 times what it should be", why), why


def test_experts_that_the_norm_leaves_out(bench: Bench) -> None:
    why = bench.why("moe", DEALT, not_in_the_norm)
    assert why is not None and re.match("step 0: grad_norm", why), why


def test_the_same_experts_on_every_rank(bench: Bench) -> None:
    why = bench.why("moe", DEALT, first_experts_everywhere)
    assert why is not None and re.search("step 0: .*first weights", why), why


def test_gradients_that_stay_where_the_expert_is(bench: Bench) -> None:
    why = bench.why("moe", DEALT, gradients_of_own_tokens_alone)
    assert why is not None and re.match("step 0: ", why), why
