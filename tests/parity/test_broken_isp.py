"""Mistakes that weights which are gathered, and heads that are exchanged, may have are found (see test_broken.py)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.model import Decoder
from evo_core.parallel.weight import attention, gathering, gradients
from evo_core.parallel.weight.blocks import gathering_of
from evo_core.parallel.weight.experts import RowsDispatch
from evo_core.parallel.weight.gathering import Gathering
from evo_core.parallel.weight.gradients import GradientSum
from evo_core.parallel.weight.linear import GatheredLinear
from evo_core.parity.job import Settings
from tests.parity.bench import Bench, nothing, on_documents
from tests.replaced import replaced

pytestmark = pytest.mark.parity


def isp(tensor: int, weight: int, **of_weight: bool) -> Settings:
    return {"tensor": {"size": tensor, "mode": "isp"}, "weight": {"size": weight, **of_weight}}


OWN = isp(1, 2)
BOTH = isp(2, 2)
POOL = isp(2, 2, overlap=True, memory_pool=True)
FIRST_LOSS = r"step 0: .* deviates .*: already the first loss differs"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from on_documents(tmp_path_factory.mktemp("documents"))


def swapped_heads(model: Decoder) -> Any:
    """The first rank computes the heads that the second sends back as its own, and the other way round."""
    exchange = attention.all_to_all

    def other_way(output: torch.Tensor, source: torch.Tensor, group: Any) -> Any:
        return exchange(output, source.flip(0).contiguous(), group)

    return replaced(attention, "all_to_all", other_way)


def heads_out_of_order(model: Decoder) -> Any:
    """Rows come back with the heads of the ranks in the wrong order."""
    as_it_is = attention.heads_to_rows

    def turned(axis: Any, x: torch.Tensor, heads: list[int]) -> Any:
        parts = as_it_is(axis, x, heads)
        return tuple(torch.cat(part.chunk(axis.size, dim=1)[::-1], dim=1) for part in parts)

    return replaced(attention, "heads_to_rows", turned)


def whole_positions(model: Decoder) -> None:
    """Each rank takes its rows for the first of the sequence."""
    model._projected = lambda of_tokens: (  # type: ignore[method-assign]
        of_tokens.chunk(2)[0] if isinstance(of_tokens, torch.Tensor) else of_tokens
    )


def other_order_of_rows(model: Decoder) -> Any:
    """Weights are put together with the second rank's rows first."""
    as_it_is = gathering.all_gather

    def gathered(output: torch.Tensor, source: torch.Tensor, group: Any) -> Any:
        work = as_it_is(output, source, group)
        work.wait()
        output.copy_(torch.cat(output.clone().chunk(2)[::-1]))
        return _Arrived()

    return replaced(gathering, "all_gather", gathered)


class _Arrived:
    def wait(self) -> None:
        pass


def own_bias_alone(model: Decoder) -> Any:
    """Of a bias each rank has its own part twice."""
    as_it_is = gathering.all_gather

    def gathered(output: torch.Tensor, source: torch.Tensor, group: Any) -> Any:
        if source.dim() > 1:
            return as_it_is(output, source, group)
        output.copy_(source.repeat(2))
        return _Arrived()

    return replaced(gathering, "all_gather", gathered)


def summed_with(change: Callable[[torch.Tensor], torch.Tensor], *, exchange: bool = True) -> Any:
    """Another sum of gradients: of the whole one here, changed, or without the other rank's."""
    as_it_is = gradients.reduce_scatter

    def summed(output: torch.Tensor, source: torch.Tensor, group: Any) -> Any:
        if exchange:
            return as_it_is(output, change(source), group)
        output.copy_(change(source).chunk(2)[dist.get_rank(group)])
        return _Arrived()

    return replaced(gradients, "reduce_scatter", summed)


def not_summed(model: Decoder) -> Any:
    return summed_with(lambda source: source, exchange=False)


def summed_twice(model: Decoder) -> Any:
    return summed_with(lambda source: 2 * source)


def last_collected_is_lost(model: Decoder) -> Any:
    """Of the gradients that arrive a block later, those of the first block are dropped."""
    as_it_is = GradientSum.collect

    def collect(self: GradientSum) -> Any:
        found = as_it_is(self)
        return [None] * len(found) if self._layer.unit.number == 0 else found

    return replaced(GradientSum, "collect", collect)


def stale_weights(model: Decoder) -> Any:
    """What the last use of a weight has left is used again, behind the update too."""
    as_it_is, old = Gathering.fetch, dict[Any, torch.Tensor]()

    def fetch(self: Gathering, layer: GatheredLinear) -> Any:
        whole = as_it_is(self, layer)
        now = whole.weight.clone()
        if layer.unit.number == 1 and not gathering.in_backward() and layer in old:
            whole.weight.copy_(old[layer])
        old[layer] = now
        return whole

    return replaced(Gathering, "fetch", fetch)


def buffer_given_back_too_soon(model: Decoder) -> Any:
    """The next weight comes into the memory of one that is still to be used."""
    found = gathering_of(model)
    assert found is not None
    as_it_is = found._start

    def start(layer: GatheredLinear) -> Any:
        whole = as_it_is(layer)
        found.buffers.give_back(whole.weight)
        return whole

    return replaced(found, "_start", start)


def idle_expert(model: Decoder) -> Any:
    """The second expert is called by nobody."""
    as_it_is = RowsDispatch.forward

    def forward(self: RowsDispatch, x: torch.Tensor, routing: Any, experts: Any) -> torch.Tensor:
        return as_it_is(self, x, routing._replace(kept=routing.kept & (routing.experts != 1)), experts)

    return replaced(RowsDispatch, "forward", forward)


@pytest.mark.parametrize(
    ("model", "parallel"),
    [
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("", OWN), ("", BOTH), ("", POOL))),
        ("one-kv-head", BOTH),
        ("moe", POOL),
    ],
    ids=["weights", "both", "pool", "one-kv-head", "moe"],
)
def test_nothing_is_found_where_nothing_is_broken(bench: Bench, model: str, parallel: Settings) -> None:
    assert bench.why(model, parallel, nothing) is None


@pytest.mark.parametrize(
    ("model", "parallel", "mistake"),
    [
        ("", BOTH, swapped_heads),
        ("", BOTH, heads_out_of_order),
        ("", BOTH, whole_positions),
        ("", OWN, other_order_of_rows),
        ("", POOL, buffer_given_back_too_soon),
        ("moe", BOTH, idle_expert),
    ],
)
def test_what_the_first_loss_shows(bench: Bench, model: str, parallel: Settings, mistake: Any) -> None:
    why = bench.why(model, parallel, mistake)
    assert why is not None and re.match(FIRST_LOSS, why), why


@pytest.mark.parametrize("mistake", [not_summed, summed_twice, last_collected_is_lost])
def test_what_the_first_gradients_show(bench: Bench, mistake: Any) -> None:
    for parallel in (OWN, POOL):
        why = bench.why("", parallel, mistake)
        assert why is not None and re.match("step 0: layers.*deviates", why), why


@pytest.mark.parametrize("mistake", [stale_weights, own_bias_alone])
def test_what_only_another_step_shows(bench: Bench, mistake: Any) -> None:
    """Biases are 0 at first."""
    why = bench.why("", BOTH, mistake)
    assert why is not None and re.match("step 1: ", why), why
