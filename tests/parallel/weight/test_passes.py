"""What one pass leaves behind: nothing that the next one, or another model, computes with."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evo_core.model import Decoder, compile_blocks
from evo_core.parallel.weight.gathering import Gathering, in_backward
from evo_core.parallel.weight.linear import GatheredLinear
from tests.parallel.weight.jobs import (
    EXPERTS,
    MOE_COEFF,
    Job,
    arguments,
    micro_batch,
    of_one_process,
    scaled,
    small,
)
from tests.ranks import run_on_ranks
from tests.replaced import replaced

BAR = 1e-12
SCALE = 0.9
"""Of all weights from one step to the next."""

Gradients = dict[str, Tensor]


class Stopped(Exception):
    """What ends a pass half-way, on all ranks at the same place."""


def references(cfg: Any, steps: int, count: int, prepare: Callable[[Decoder], object] | None = None) -> list[Gradients]:
    more: Any = {} if prepare is None else {"prepare": prepare}
    return [of_one_process(cfg, count, scale=SCALE**step, **more) for step in range(steps)]


def worst_of_steps(job: Job, want: list[Gradients], between: Callable[[int], object] = lambda step: None) -> float:
    """The largest deviation of some steps' gradients, with other weights in each."""
    worst = 0.0
    for step, reference in enumerate(want):
        job.train(2)
        worst = max(worst, job.deviation(reference))
        between(step)
        scaled(job.model, SCALE)
    return worst


FROZEN: dict[str, Callable[[str], bool]] = {
    "the embedding": lambda name: name.startswith("tok"),
    "the embedding and the first norm": lambda name: name.startswith(("tok", "layers.0.attention_norm")),
    "the first blocks": lambda name: name.startswith(("tok", "layers.0", "layers.1")),
    "all but the end of the last block": lambda name: not name.startswith(("layers.3.feed_forward.w2", "norm", "out")),
    "some layers": lambda name: "wqkv" in name or "2.feed_forward.w3" in name or "w2" in name,
    "biases": lambda name: name.endswith("bias"),
    "weights beside a bias": lambda name: "wqkv.weight" in name or "wo.weight" in name,
    "the last block": lambda name: name.startswith("layers.3"),
    "all blocks": lambda name: name.startswith("layers."),
}


SHORT = ("the embedding and the first norm", "the first blocks", "some layers")


@pytest.mark.parametrize(
    "frozen", [pytest.param(each, marks=[] if each in SHORT else [pytest.mark.slow]) for each in FROZEN]
)
def test_parameters_that_are_not_trained(frozen: str) -> None:
    def freeze(model: Decoder) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not FROZEN[frozen](name))

    def body() -> list[float]:
        return [
            worst_of_steps(Job(small(checkpoint=checkpoint), 2, 2, overlap=pool, pool=pool, prepare=freeze), want)
            for checkpoint, pool in ((False, False), (0.5, True), (True, True))
        ]

    want = references(small(), 2, 2, freeze)
    for found in run_on_ranks(body, 2):
        assert max(found) <= BAR, found


def stop_at(block: int, *, backward: bool, times: int) -> Any:
    """A context in which a layer of a block raises when its weight has come for the so-manieth time."""
    as_it_is, left = Gathering.fetch, [times]

    def fetch(self: Gathering, layer: GatheredLinear) -> Any:
        whole = as_it_is(self, layer)
        if layer.unit.number == block and in_backward() == backward:
            left[0] -= 1
            if not left[0]:
                raise Stopped
        return whole

    return replaced(Gathering, "fetch", fetch)


@pytest.mark.parametrize(
    ("checkpoint", "pool"),
    [
        pytest.param(checkpoint, pool, marks=[] if (checkpoint, pool) == (0.5, True) else [pytest.mark.slow])
        for checkpoint in (False, 0.5, True)
        for pool in (False, True)
    ],
)
def test_a_pass_that_an_error_ends(checkpoint: Any, pool: bool) -> None:
    """The weights that it had sent for are those of before the update; and nothing of its gradients is collected."""

    def body() -> dict[str, float]:
        found = {}
        job = Job(small(num_layers=3, checkpoint=checkpoint), 2, 2, overlap=pool, pool=pool)
        job.alone(2, want)  # the order is known, and weights are sent for before they are used
        for backward, block, times in itertools.product((False, True), range(3), (1, 3)):
            with stop_at(block, backward=backward, times=times), pytest.raises(Stopped):
                job.alone(1, want)
            scaled(job.model, SCALE)
            found[f"backward {backward}, block {block}, {times}"] = job.alone(1, want)
            scaled(job.model, 1 / SCALE)
        return found

    want = of_one_process(small(num_layers=3), 1, scale=SCALE)
    for found in run_on_ranks(body, 2):
        assert max(found.values()) <= BAR, found


def test_an_error_in_the_very_first_pass() -> None:
    """Of the order of use only the beginning is known then."""

    def body() -> list[float]:
        found = []
        for backward, times in itertools.product((False, True), (1, 2, 3)):
            job = Job(small(checkpoint=0.5), 2, 2, overlap=True, pool=True)
            with stop_at(1, backward=backward, times=times), pytest.raises(Stopped):
                job.alone(1, want)
            scaled(job.model, SCALE)
            found += [job.alone(1, want), job.alone(1, want)]
        return found

    want = of_one_process(small(), 1, scale=SCALE)
    for found in run_on_ranks(body, 2):
        assert max(found) <= BAR, found


@pytest.mark.parametrize("overlap", [pytest.param(False, marks=pytest.mark.slow), True])
def test_passes_without_gradients_between_steps_and_within_one(overlap: bool) -> None:
    """Before the first step, between steps, and between the forward and the backward pass of a micro-batch."""

    def body(settings: dict[str, Any]) -> tuple[float, list[list[float]]]:
        losses, worst = [], 0.0
        job = Job(small(**settings, checkpoint=0.5), 2, 2, overlap=overlap, pool=overlap)
        with torch.inference_mode():
            job.evaluate(2)
        for reference in want:
            with torch.inference_mode():
                inferred = job.evaluate(2)
            job.train(2, within=lambda number: job.evaluate())
            worst = max(worst, job.deviation(reference))
            losses.append([*inferred, *job.evaluate(2)])
            scaled(job.model, SCALE)
        return worst, losses

    for settings in ({}, EXPERTS):
        want = references(small(**settings), 2, 2)
        for worst, losses in run_on_ranks(body, 2, settings):
            assert worst <= BAR
            for each in losses:
                assert each[:2] == each[2:]
            assert losses[0] != losses[1]


def test_two_models_by_turns() -> None:
    """Each has an order and buffers of its own; their messages go over the same connections."""

    def body() -> list[float]:
        jobs = [Job(small(**settings), 2, 2, overlap=True, pool=True) for settings in (first, second)]
        found = []
        for step in range(2):
            jobs[0].train(2, within=lambda number: jobs[1].evaluate())
            found.append(jobs[0].deviation(want[0][step]))
            jobs[1].train(2)
            found.append(jobs[1].deviation(want[1][step]))
            for job in jobs:
                scaled(job.model, SCALE)
        return found

    first: dict[str, Any] = {"checkpoint": True}
    second: dict[str, Any] = {"num_layers": 2, "hidden_size": 48, "use_swiglu": False}
    want = [references(small(**settings), 2, 2) for settings in (first, second)]
    for found in run_on_ranks(body, 2):
        assert max(found) <= BAR, found


def test_one_block() -> None:
    """It is the first of its stage and the last."""

    def body() -> list[float]:
        return [
            worst_of_steps(Job(small(num_layers=1, checkpoint=checkpoint), 2, 2, overlap=True, pool=True), want)
            for checkpoint in (False, True)
        ]

    want = references(small(num_layers=1), 3, 2)
    for found in run_on_ranks(body, 2):
        assert max(found) <= BAR, found


def test_gradients_that_nobody_asks_for_and_those_of_two_passes_at_a_time() -> None:
    """A forward pass may have no backward one, and another forward pass may come before it, as in a pipeline."""

    def body() -> float:
        job = Job(small(num_layers=3, checkpoint=0.5), 2, 2, overlap=True, pool=True)
        job.alone(1, want)
        dropped, *outputs = (job.model(*arguments(micro_batch(n)), **micro_batch(n).more) for n in (2, 0, 1))
        assert dropped.loss is not None
        job.model.zero_grad()
        for output in outputs:
            output.objective(MOE_COEFF).backward()
        found = {name: parameter.grad for name, parameter in job.model.named_parameters() if parameter.grad is not None}
        return max(
            float((piece.of(found[name]) / 2 - piece.where.of(want[name])).abs().max() / want[name].abs().max())
            for name, held in job.model.held.items()
            if held.gathered
            for piece in held.placement.pieces
        )

    want = of_one_process(small(num_layers=3), 2)
    assert max(run_on_ranks(body, 2)) <= BAR


@pytest.mark.slow
def test_compiled_blocks() -> None:
    """Half of them recomputed, the next one's weights under way. Graphs are cut as ever, but no kernels made of them,
    which takes minutes."""

    def compiled(model: Decoder) -> None:
        without_kernels = functools.partialmethod(nn.Module.compile, backend="aot_eager")
        with replaced(nn.Module, "compile", without_kernels):
            assert compile_blocks(model) == 2

    def body() -> float:
        job = Job(small(num_layers=2, checkpoint=0.5), 2, 2, overlap=True, pool=True, prepare=compiled)
        return worst_of_steps(job, want, between=lambda step: job.evaluate())

    want = references(small(num_layers=2), 3, 2)
    assert max(run_on_ranks(body, 2, timeout=120.0)) <= BAR
