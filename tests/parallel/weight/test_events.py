"""What happens to weights in a pass, and in which order: how often they come, before what, and when sums are collected.

Block i + 1's weights are all sent for before block i computes anything, forward; backward block i - 1's. The sums of
block i's gradients are collected behind the last product of block i - 1 with its weights, and before block i - 2
computes anything: the messages have all of one block's backward pass to arrive in. Of the first block of a stage that
is the end of the pass. Without overlap a weight is sent for when it is used, and a sum collected when it was sent.

Under zero-bubble schedules a layer's gradients are made in a call of autograd of their own, which collects them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from evo_core.model.compiled import compile_blocks
from evo_core.parallel.pipeline.placing import Placing
from evo_core.parallel.weight.gathering import Event
from evo_core.parallel.weight.linear import GatheredLinear
from tests.parallel.weight.jobs import EXPERTS, Job, Prepare, nothing, small
from tests.ranks import run_on_ranks

LAYERS = 4
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "experts": EXPERTS,
    "experts beside an MLP": {**EXPERTS, "moe_use_residual": True},
    "norms behind sums": {"apply_post_layer_norm": True},
    "dropout": {"drop_rate": 0.1},
    "three projections": {"model_type": "LLAMA2", "no_bias": True},
}


def layers_of(job: Job) -> list[str]:
    return [module.name for module in job.model.modules() if isinstance(module, GatheredLinear)]


def counted(cfg: Any, overlap: bool, pool: bool, placing: Placing | None = None, mode: str = "1F1B") -> None:
    """Two weights for each layer and micro-batch of a step, the first step too; one for each that is evaluated."""
    job = Job(cfg, 2, 2, overlap=overlap, pool=pool, placing=placing, mode=mode)
    layers = layers_of(job)
    assert layers
    for count in (3, 2):
        with job.gathering.recording() as record:
            job.train(count)
        for what, times in (("gather", 2), ("sum", 1), ("collect", 1)):
            found = Counter(event.layer for event in record.events if event.what == what)
            assert found == dict.fromkeys(layers, times * count), (what, cfg.checkpoint, overlap)
        with job.gathering.recording() as record:
            job.evaluate(count)
        assert Counter(event.layer for event in record.events if event.what == "gather") == dict.fromkeys(layers, count)


WAYS = [
    (checkpoint, overlap, pool)
    for checkpoint in (False, 0.5, True)
    for overlap, pool in ((False, False), (True, False), (True, True))
]
"""Fraction of recomputed blocks, overlap and pool."""

SHORT = [(0.5, True, True), (True, False, False)]


@pytest.mark.parametrize(
    ("settings", "ways"),
    [
        ("plain", SHORT),
        ("experts", SHORT),
        *(pytest.param(each, WAYS, marks=pytest.mark.slow) for each in SETTINGS),
    ],
)
def test_weights_come_twice_for_a_micro_batch(settings: str, ways: list[tuple[float, bool, bool]]) -> None:
    def body() -> None:
        for checkpoint, overlap, pool in ways:
            counted(small(num_layers=2, checkpoint=checkpoint, **SETTINGS[settings]), overlap, pool)

    run_on_ranks(body, 2)


SCHEDULES = {
    "1F1B": (Placing(2), "1F1B"),
    "interleaved": (Placing(2, 2), "1F1B"),
    "ZBH1": (Placing(2), "ZBH1"),
    "ZBV": (Placing(2, 2, is_v=True), "ZBV"),
}


@pytest.mark.parametrize(
    ("name", "ways"),
    [("ZBV", SHORT[:1]), *(pytest.param(name, WAYS, marks=pytest.mark.slow) for name in SCHEDULES)],
)
def test_weights_come_twice_for_a_micro_batch_of_stages(name: str, ways: list[tuple[float, bool, bool]]) -> None:
    def body() -> None:
        for checkpoint, overlap, pool in ways:
            counted(small(checkpoint=checkpoint), overlap, pool, *SCHEDULES[name])

    run_on_ranks(body, 4, timeout=200.0)


def events_of(settings: dict[str, Any], overlap: bool, prepare: Prepare = nothing) -> list[Event]:
    """What happens in a pass of one micro-batch, when the order of use is known."""
    job = Job(small(num_layers=LAYERS, **settings), 2, 2, overlap=overlap, prepare=prepare)
    job.train(1)
    with job.gathering.recording() as record:
        job.train(1)
    assert {event.block for event in record.events} == set(range(LAYERS))
    return record.events


def places(events: Sequence[Event], what: str, block: int) -> list[int]:
    return [place for place, event in enumerate(events) if event.what == what and event.block == block]


def is_sent_for_ahead(events: Sequence[Event], blocks: Sequence[int], layers: int) -> None:
    """In one pass through blocks: at most two blocks' weights are there, all of the next one's before one computes."""
    for number, block in enumerate(blocks):
        begins = places(events, "compute", block)[0]
        assert len(places(events, "gather", block)) == layers
        assert places(events, "gather", block)[-1] < begins
        if number + 1 < len(blocks):
            assert places(events, "gather", blocks[number + 1])[-1] < begins
        if number + 2 < len(blocks):
            assert places(events, "gather", blocks[number + 2])[0] > places(events, "compute", block)[-1]


def is_collected_a_block_later(events: Sequence[Event]) -> None:
    for block in range(LAYERS):
        sums, collects = places(events, "sum", block), places(events, "collect", block)
        assert len(sums) == len(collects)
        if block:
            assert collects[0] > places(events, "compute", block - 1)[-1]
        if block > 1:
            assert collects[-1] < places(events, "compute", block - 2)[0]
    first = places(events, "compute", 0)[-1]
    assert all(place > first for place in places(events, "collect", 0))


def check_order(settings: dict[str, Any], prepare: Prepare = nothing, timeout: float = 60.0) -> None:
    """At every fraction of recomputed blocks, and alike on all ranks."""

    def body() -> list[list[Event]]:
        return [events_of({**settings, "checkpoint": checkpoint}, True, prepare) for checkpoint in (False, 0.5, True)]

    first, *others = run_on_ranks(body, 2, timeout=timeout)
    assert all(other == first for other in others)
    for events in first:
        forward = [event for event in events if not event.backward]
        backward = [event for event in events if event.backward]
        assert events == forward + backward
        layers = len({event.layer for event in events if event.block == 0})
        is_sent_for_ahead(forward, range(LAYERS), layers)
        is_sent_for_ahead(backward, range(LAYERS)[::-1], layers)
        is_collected_a_block_later(backward)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(each, marks=[] if each in ("plain", "experts", "norms behind sums") else [pytest.mark.slow])
        for each in SETTINGS
    ],
)
def test_the_next_blocks_weights_are_under_way_while_one_computes(settings: str) -> None:
    check_order(SETTINGS[settings])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_blocks_send_for_weights_ahead_too() -> None:
    check_order({}, compile_blocks, timeout=500.0)


def test_without_overlap_each_message_is_waited_for_at_once() -> None:
    def body() -> list[list[Event]]:
        return [events_of({"checkpoint": checkpoint}, False) for checkpoint in (False, 0.5, True)]

    first, *others = run_on_ranks(body, 2)
    assert all(other == first for other in others)
    for events in first:
        for event, after in zip(events, [*events[1:], None], strict=True):
            follows = {"gather": "compute", "sum": "collect"}.get(event.what)
            assert follows is None or after == event._replace(what=follows)


def test_nothing_is_sent_for_ahead_before_the_order_of_use_is_known() -> None:
    """In the first pass of all, which may be an evaluation."""

    def body() -> list[list[Event]]:
        job = Job(small(num_layers=2), 2, 2, overlap=True)
        records = []
        for _ in range(2):
            with job.gathering.recording() as record:
                job.evaluate()
            records.append(record.events)
        return records

    for first, second in run_on_ranks(body, 2):
        assert [event.what for event in first] == ["gather", "compute"] * (len(first) // 2)
        assert [event for event in first if event.what == "compute"] == [e for e in second if e.what == "compute"]
        is_sent_for_ahead(second, range(2), len(second) // 4)
