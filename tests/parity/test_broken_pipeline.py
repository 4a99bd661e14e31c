"""Mistakes that a pipeline may have are found, as those of other layouts are (test_broken.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.model import Decoder
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parity.job import Settings
from evo_core.train import optimizer as train_optimizer
from tests.parity.bench import Bench, nothing, on_documents
from tests.replaced import replaced

pytestmark = pytest.mark.parity

PP: Settings = {"pipeline": {"size": 2}}
INTERLEAVED: Settings = {"pipeline": {"size": 2}, "chunks": 2}
ZBH1: Settings = {"pipeline": {"size": 2, "mode": "ZBH1"}}
ZBV: Settings = {"pipeline": {"size": 2, "mode": "ZBV"}, "chunks": 2}
TIED = "tok_embeddings.weight"
FIRST_LOSS = r"step 0: .* deviates .*: already the first loss differs"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield from on_documents(tmp_path_factory.mktemp("documents"), layers=4)


def swapped_chunks(model: Decoder) -> None:
    """One rank has the blocks of its second chunk in its first, and the other way round."""
    if dist.get_rank() == 1:
        first, second = model.stages
        model.stages = replace(first, blocks=second.blocks), replace(second, blocks=first.blocks)


def other_places(model: Decoder) -> None:
    """The second stage takes each token for the first of its document."""
    if dist.get_rank() == 1:
        as_it_is = model.rotation
        model.rotation = lambda at, base=None: as_it_is(torch.zeros_like(at), base)  # type: ignore[method-assign]


def not_summed_over_ends(model: Decoder) -> Any:
    """First and last stage keep to themselves what they see of a tied weight's gradient."""
    groups_of = train_optimizer.groups_of

    def apart(*args: Any, **options: Any) -> Any:
        return [replace(group, ends=None) for group in groups_of(*args, **options)]

    return replaced(train_optimizer, "groups_of", apart)


def counted_at_both_ends(model: Decoder) -> None:
    """The record of each end says that the other has nothing of the tied weight."""
    held = model.held[TIED]
    own = (dist.get_rank(),)
    alone = tuple(
        replace(placement, pieces=tuple(replace(piece, ranks=own) for piece in placement.pieces))
        for placement in held.on_each
    )
    model.held = {**model.held, TIED: replace(held, on_each=alone)}


def not_collected(model: Decoder) -> Any:
    """The optimizer hears of no gradient that a schedule sets without calling hooks."""

    def lose(optimizer: Zero1AdamW) -> None:
        for parameter in model.parameters():
            parameter.grad = None

    return replaced(Zero1AdamW, "collect", lose)


@pytest.mark.parametrize(
    ("model", "parallel"),
    [("", PP), ("", INTERLEAVED), ("tied", PP), ("", ZBH1), ("", ZBV)],
    ids=["1f1b", "interleaved", "tied", "zbh1", "zbv"],
)
def test_nothing_is_found_where_nothing_is_broken(bench: Bench, model: str, parallel: Settings) -> None:
    assert bench.why(model, parallel, nothing) is None


@pytest.mark.parametrize("parallel", [INTERLEAVED, ZBV], ids=["interleaved", "zbv"])
def test_two_chunks_that_are_swapped(bench: Bench, parallel: Settings) -> None:
    why = bench.why("", parallel, swapped_chunks)
    assert why is not None and re.match(FIRST_LOSS, why), why


def test_a_stage_with_other_positions(bench: Bench) -> None:
    why = bench.why("", PP, other_places)
    assert why is not None and re.match(FIRST_LOSS, why), why


def test_a_tied_gradient_that_is_not_summed(bench: Bench) -> None:
    why = bench.why("tied", PP, not_summed_over_ends)
    assert why is not None and re.match(rf"step 0: {TIED}: .* has other bits on rank 1", why), why


def test_a_tied_weight_that_is_counted_twice(bench: Bench) -> None:
    why = bench.why("tied", PP, counted_at_both_ends)
    assert why is not None and re.match(rf"step 0: {TIED}: .* and its record says", why), why


@pytest.mark.parametrize("parallel", [ZBH1, ZBV], ids=["zbh1", "zbv"])
def test_gradients_of_which_the_optimizer_does_not_hear(bench: Bench, parallel: Settings) -> None:
    why = bench.why("", parallel, not_collected)
    assert why is not None and re.match("step 0: .* deviates by 1.0e\\+00", why), why
