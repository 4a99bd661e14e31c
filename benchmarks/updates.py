"""Clipping and AdamW, beside torch's own: the third part of ``python -m benchmarks.optimizer``.

One process updates float32 parameters from given gradients, by this repository's optimizer and by torch's
`clip_grad_norm_` and fused AdamW, in turns. The norm is compared with one in float64, from which torch's own is some
10^-5 off, and the updated parameters with torch's; a difference ends the benchmark. Once the elements are in few large
parameters, as a rank has of a large model, and once in many small ones, of which torch takes each by itself, and Evo
the vectors that all of them lie in.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from evo_core.optim.groups import data_parallel
from evo_core.optim.zero1 import Zero1AdamW
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

LR, CLIP = 1e-3, 1.0
LARGE, SMALL = 8, 1000
"""How many large parameters there are; elements of a small one."""
TOLERANCE = 1e-5


class Times(NamedTuple):
    """Milliseconds, one a round."""

    ours: list[float]
    torchs: list[float]


def net(elements: int, parameters: int) -> nn.Module:
    """So many parameters of equal size."""
    generator = torch.Generator().manual_seed(0)
    return nn.ParameterList(
        nn.Parameter(torch.randn(elements // parameters, generator=generator)) for _ in range(parameters)
    )


def measure(elements: int, parameters: int, rounds: int) -> Times:
    """On this rank, the only one.

    Raises:
        SystemExit: norm or parameters differ.
    """
    mine, theirs = net(elements, parameters), net(elements, parameters)
    optimizer = Zero1AdamW(
        [data_parallel(mine.named_parameters(), mesh := mesh_of(1))], mesh.world, clip_grad_norm=CLIP
    )
    adamw = torch.optim.AdamW(theirs.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    gradients = [torch.randn_like(param) for param in mine.parameters()]
    expected = float(torch.stack([gradient.double().norm() for gradient in gradients]).norm())
    times = Times([], [])
    for number in range(rounds + 1):
        for model in (mine, theirs):
            for param, gradient in zip(model.parameters(), gradients, strict=True):
                param.grad = gradient.clone()
        optimizer.begin()
        optimizer.collect()
        ours, norm = timed(partial(update, optimizer))
        torchs, _ = timed(partial(torch_update, theirs, adamw))
        if abs(norm - expected) > TOLERANCE * expected:
            raise SystemExit(f"norm {norm}, in float64 {expected}: void")
        if number:  # the first finds its memory
            times.ours.append(1e3 * ours)
            times.torchs.append(1e3 * torchs)
    for param, expected_param in zip(mine.parameters(), theirs.parameters(), strict=True):
        if not torch.allclose(param, expected_param, atol=TOLERANCE):
            raise SystemExit("updated parameters are others than torch's: void")
    return times


def update(optimizer: Zero1AdamW) -> float:
    """Norm, clipping and update of what the optimizer has collected."""
    norm = optimizer.reduce(torch.zeros(0, dtype=torch.float64)).norm
    optimizer.step(LR, 0.95)
    return norm


def torch_update(model: nn.Module, adamw: torch.optim.Optimizer) -> float:
    """The same by torch."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    adamw.step()
    return float(norm)


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Seconds, and what came of it."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def run(elements: int, rounds: int) -> dict[str, Times]:
    """By what the parameters are."""
    kinds = {
        f"8 parameters of {elements // 8:,}": 8,
        f"{elements // SMALL:,} parameters of {SMALL:,}": elements // SMALL,
    }
    return {name: run_on_ranks(measure, 1, elements, count, rounds, timeout=600)[0] for name, count in kinds.items()}


def show(found: dict[str, Times]) -> Iterator[str]:
    """The lines of the table."""
    yield "  clipping and AdamW, one thread, ms"
    for name, times in found.items():
        ratio = statistics.median(theirs / ours for ours, theirs in zip(*times, strict=True))
        ours, torchs = (statistics.median(each) for each in times)
        yield f"  {name:32} Evo {ours:8.1f}   torch {torchs:8.1f}   torch takes {ratio:.2f}x as long (median of rounds)"
