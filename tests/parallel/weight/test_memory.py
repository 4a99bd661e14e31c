"""Bytes that a rank holds of weights, against formulas: its parts of them, and whole ones while they are used.

A model of L blocks whose linear layers have b bytes each block, on t ranks that share the sequence and w that share
each weight, holds of parameters

    L b / w + (embedding + head) / t + norms

and of whole weights at most, over any number of passes,

    2 b                      with overlap: the block that computes, and the next one
    b                        without, where blocks are recomputed: weights stay until gradients are made; less the last
                             layer where nothing follows it, which is used for them before others are recomputed
    the largest layer        without, where none is
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from evo_core.model.ops.linear import Linear
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.pipeline.placing import Placing
from evo_core.parallel.weight.buffers import Buffers
from tests.parallel.weight.jobs import EXPERTS, Job, isp, small, whole_model
from tests.ranks import run_on_ranks

LAYERS = 3


def block_layers(settings: dict[str, Any]) -> list[int]:
    """The bytes of each linear layer of a block that is gathered, of all of it."""
    block = whole_model(small(**settings)).blocks["0"]
    return [
        sum(parameter.nbytes for parameter in module.parameters())
        for name, module in block.named_modules()
        if is_gathered(name, module)
    ]


def is_gathered(name: str, module: torch.nn.Module) -> bool:
    return isinstance(module, Linear) and not name.endswith(("gate.wg", "coefficient"))


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{}, EXPERTS], ids=["plain", "experts"])
def test_bytes_of_parameters(ranks: int, settings: dict[str, Any]) -> None:
    cfg = small(num_layers=LAYERS, **settings)
    sizes = [(t, w) for t, w in itertools.product((1, 2, 4), repeat=2) if max(t, w) <= ranks and (t, w) != (1, 1)]

    def body() -> list[int]:
        models = [build_parallel(cfg, isp(t, w), "cpu") for t, w in sizes]
        return [sum(parameter.nbytes for parameter in model.parameters()) for model in models]

    whole = whole_model(cfg)
    linear = LAYERS * sum(block_layers(settings))
    ends = sum(p.nbytes for name, p in whole.named_parameters() if name.startswith(("tok", "output", "embed", "head")))
    rest = sum(parameter.nbytes for parameter in whole.parameters()) - linear - ends  # norms, and routers
    assert 0 < rest < linear / 20 and ends
    for found in run_on_ranks(body, ranks):
        assert found == [linear // w + ends // t + rest for t, w in sizes]


class Watched(Buffers):
    """Buffers of which it is seen when nobody holds on to their memory any more."""

    def __init__(self) -> None:
        super().__init__(pool=False)
        self._arrays: list[weakref.ref[np.ndarray]] = []

    @property
    def alive(self) -> int:
        """How many anything holds on to."""
        return sum(array() is not None for array in self._arrays)

    def _new(self, kind: Any) -> Tensor:
        array = np.empty_like(super()._new(kind).numpy())
        self._arrays.append(weakref.ref(array))
        return torch.from_numpy(array)


def test_autograd_keeps_no_whole_weight() -> None:
    """Between a forward and a backward pass, and behind a step; gloo's threads let go of a message a moment later."""

    def body() -> None:
        for checkpoint, overlap in itertools.product((False, 0.5, True), (False, True)):
            job = Job(small(num_layers=LAYERS, checkpoint=checkpoint), 2, 2, overlap=overlap)
            watched = job.gathering.buffers = Watched()

            def freed(number: int = 0, watched: Watched = watched, job: Job = job) -> None:
                for _ in range(1000):
                    held = torch.tensor(watched.alive)
                    dist.all_reduce(held, group=job.gathering.axis.group)  # its threads go on to other messages
                    if not held:
                        return
                raise AssertionError(f"{held} whole weights are held")

            for _ in range(2):
                job.train(2, within=freed)
                freed()

    run_on_ranks(body, 2)


def peak(cfg: Any, overlap: bool) -> int:
    """Bytes of whole weights at most."""
    job = Job(cfg, 2, 2, overlap=overlap)
    for count in (2, 1):
        job.train(count)
        job.evaluate()
    return job.gathering.buffers.peak


@pytest.mark.parametrize("settings", [{}, pytest.param(EXPERTS, marks=pytest.mark.slow)], ids=["plain", "experts"])
def test_bytes_of_whole_weights(settings: dict[str, Any]) -> None:
    cases = [(checkpoint, overlap) for checkpoint in (False, 0.5, True) for overlap in (False, True)]

    def body() -> list[int]:
        return [
            peak(small(num_layers=LAYERS, checkpoint=checkpoint, **settings), overlap) for checkpoint, overlap in cases
        ]

    layers = block_layers(settings)
    recomputed = sum(layers) - (0 if settings else layers[-1])  # tokens are brought back from experts
    want = [2 * sum(layers) if overlap else recomputed if checkpoint else max(layers) for checkpoint, overlap in cases]
    assert run_on_ranks(body, 2) == [want, want]


@pytest.mark.slow
def test_a_pool_is_made_in_the_first_pass() -> None:
    """Of what two neighbouring blocks have; whatever passes come later, no buffer is made, nor given up."""

    def body(settings: dict[str, Any]) -> list[tuple[int, int]]:
        job = Job(small(num_layers=LAYERS, checkpoint=0.5, **settings), 2, 2, overlap=True, pool=True)
        found = []

        def note() -> None:
            found.append((job.gathering.buffers.made, job.gathering.buffers.nbytes))

        passes: list[Callable[[], object]] = [
            lambda: job.train(1, within=lambda number: note()),
            lambda: job.evaluate(2),
            lambda: job.train(3),
            lambda: job.train(2, within=lambda number: job.evaluate()),
            lambda: job.train(1),
        ]
        for each in passes:
            each()
            note()
        return found

    for settings in ({}, EXPERTS):
        layers = block_layers(settings)
        whole = whole_model(small(num_layers=1, **settings))
        parameters = sum(len(list(m.parameters())) for n, m in whole.blocks.named_modules() if is_gathered(n, m))
        for found in run_on_ranks(body, 2, settings):
            assert set(found) == {(2 * parameters, 2 * sum(layers))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("placing", "mode"),
    [(Placing(2), "1F1B"), (Placing(2, 2), "1F1B"), (Placing(2), "ZBH1"), (Placing(2, 2, is_v=True), "ZBV")],
)
def test_a_pool_under_a_pipelines_schedule(placing: Placing, mode: str) -> None:
    """Stages of a rank use it by turns."""

    def body() -> list[int]:
        job = Job(small(num_layers=8, checkpoint=0.5), 2, 2, overlap=True, pool=True, placing=placing, mode=mode)
        found = []
        for count in (2, 5, 1, 4):
            job.train(count)
            found.append(job.gathering.buffers.nbytes)
            job.evaluate(count)
            found.append(job.gathering.buffers.nbytes)
        return found

    for found in run_on_ranks(body, 4):
        assert set(found) == {2 * sum(block_layers({}))}
