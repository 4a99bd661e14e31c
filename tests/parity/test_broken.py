"""Mistakes that a layout may have are found: each is made on the ranks, by the records and sums that training reads.

A rank builds its model as it should be and breaks one thing before it trains, so what is compared is what that mistake
would train.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch.distributed as dist

from evo_core.optim import zero1
from evo_core.optim.grad_norm import Counted
from evo_core.optim.groups import ParameterGroup
from evo_core.parity.job import Settings
from evo_core.placement import Piece, Placement
from evo_core.train import optimizer as train_optimizer
from tests.parity.bench import Bench, nothing, on_documents
from tests.replaced import replaced

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from on_documents(tmp_path_factory.mktemp("documents"))


def not_summed(model: Any, name: str) -> None:
    """Ranks that hold the same piece are thought to see its whole gradient each."""
    assert model.held[name].partial
    model.held[name] = replace(model.held[name], partial=False)


def summed(model: Any, name: str) -> None:
    """Ranks that see the whole gradient are thought to see a part each."""
    assert not model.held[name].partial
    model.held[name] = replace(model.held[name], partial=True)


def swapped(model: Any, name: str) -> None:
    """The record says that each rank holds what the other does."""
    held = model.held[name]
    there = [
        replace(
            own,
            pieces=tuple(replace(one, where=two.where) for one, two in zip(own.pieces, other.pieces, strict=True)),
        )
        for own, other in zip(held.on_each, held.on_each[::-1], strict=True)
    ]
    model.held[name] = replace(held, on_each=tuple(there))


def held_alone(model: Any, name: str) -> None:
    """The record does not know of the other ranks that hold a piece."""
    own = (dist.get_rank(),)

    def alone(placement: Placement) -> Placement:
        return replace(placement, pieces=tuple(Piece(piece.where, piece.at, own) for piece in placement.pieces))

    model.held[name] = replace(model.held[name], on_each=tuple(map(alone, model.held[name].on_each)))


def other_weights(model: Any, name: str) -> None:
    """One rank has another piece of the first weights."""
    if dist.get_rank() == 1:
        model.get_parameter(name).data.mul_(1.01)


def counted_twice(model: Any) -> Any:
    """In the global norm each rank counts all that it holds."""

    def all_of_it(grad: Any, pieces: Any, divisor: int) -> list[Counted]:
        return [(grad, 1 / divisor**2)]

    return replaced(zero1, "counted", all_of_it)


def other_groups(model: Any, change: Callable[[ParameterGroup], ParameterGroup]) -> Any:
    as_it_is = train_optimizer.groups_of

    def changed(*args: Any, **options: Any) -> list[ParameterGroup]:
        return [change(group) for group in as_it_is(*args, **options)]

    return replaced(train_optimizer, "groups_of", changed)


def divided_too_often(group: ParameterGroup) -> ParameterGroup:
    return replace(group, divisor=4 * group.divisor)


def not_over_replicas(group: ParameterGroup) -> ParameterGroup:
    return replace(group, reduce=(group.zero,))


def tensor(mode: str) -> Settings:
    return {"tensor": {"size": 2, "mode": mode}}


DATA = {"zero1": {"size": 1}}


@pytest.mark.parametrize(
    ("model", "parallel"),
    [("", tensor("mtp")), ("", tensor("msp")), ("", DATA), ("qwen3", tensor("mtp")), ("moe", tensor("msp"))],
    ids=["mtp", "msp", "dp", "qwen3", "moe"],
)
def test_nothing_is_found_where_nothing_is_broken(bench: Bench, model: str, parallel: Settings) -> None:
    assert bench.why(model, parallel, nothing) is None


OWN_SUM = r"step 0: {name} deviates.*the sum of what it leaves here is not"


@pytest.mark.parametrize(
    ("model", "mode", "name"),
    [
        ("", "msp", "layers.1.attention_norm.weight"),
        ("", "msp", "norm.weight"),
        ("", "fsp", "layers.0.attention.wo.bias"),
        ("layernorm", "msp", "layers.0.ffn_norm.bias"),
        ("qwen3", "mtp", "layers.1.attention.q_norm.weight"),
        ("qwen3", "mtp", "layers.0.attention.k_norm.weight"),
        ("moe", "msp", "blocks.1.mlp.moe_layer.gate.wg.weight"),
        ("moe", "msp", "blocks.0.mlp.coefficient.weight"),
        ("moe", "fsp", "blocks.1.mlp.coefficient.bias"),
    ],
)
def test_a_missing_sum_over_tensor_ranks(bench: Bench, model: str, mode: str, name: str) -> None:
    why = bench.why(model, tensor(mode), not_summed, name)
    assert why is not None and re.match(OWN_SUM.format(name=re.escape(name)), why), why


@pytest.mark.parametrize("name", ["layers.0.attention.wqkv.weight", "layers.1.attention.wqkv.bias"])
def test_a_missing_sum_over_the_ranks_that_hold_the_same_heads(bench: Bench, name: str) -> None:
    why = bench.why("one-kv-head", tensor("mtp"), not_summed, name)
    assert why is not None and re.match(rf"step 0: {re.escape(name)}: .* has other bits on rank 1", why), why


def test_a_sum_where_each_rank_has_all_of_the_gradient(bench: Bench) -> None:
    why = bench.why("", tensor("mtp"), summed, "layers.0.ffn_norm.weight")
    assert why is not None and "layers.0.ffn_norm.weight" in why and "it is 2 times what it should be" in why


@pytest.mark.parametrize(
    "name", ["layers.0.feed_forward.w1.weight", "layers.1.attention.wqkv.weight", "layers.0.attention.wo.weight"]
)
def test_a_swapped_piece(bench: Bench, name: str) -> None:
    why = bench.why("", tensor("mtp"), swapped, name)
    assert why is not None and re.match(OWN_SUM.format(name=re.escape(name)), why), why
    assert "a piece in the wrong place" in why


def test_a_record_that_leaves_out_a_holder(bench: Bench) -> None:
    why = bench.why("", tensor("mtp"), held_alone, "layers.0.ffn_norm.weight")
    assert why is not None and re.match(r"step 0: layers.0.ffn_norm.weight: .* and its record says", why), why


def test_a_norm_that_counts_what_is_on_several_ranks_for_each(bench: Bench) -> None:
    for parallel in (tensor("mtp"), DATA):
        why = bench.why("", parallel, counted_twice)
        assert why is not None and re.match(r"step 0: grad_norm .*counted more than once", why), why


@pytest.mark.parametrize("parallel", [tensor("msp"), DATA | {"zero1": {"size": 2}}], ids=["msp", "dp"])
def test_a_wrong_divisor(bench: Bench, parallel: Settings) -> None:
    why = bench.why("", parallel, other_groups, divided_too_often)
    assert why is not None and "0.25 times what it should be" in why


def test_a_missing_sum_over_data_ranks(bench: Bench) -> None:
    why = bench.why("", DATA, other_groups, not_over_replicas)
    assert why is not None and "other bits on rank 1" in why


def test_other_first_weights(bench: Bench) -> None:
    why = bench.why("", tensor("mtp"), other_weights, "layers.0.feed_forward.w1.weight")
    assert why is not None and re.search("step 0: .*first weights", why)
