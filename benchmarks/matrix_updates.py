"""Muon beside AdamW: the fourth part of ``python -m benchmarks.optimizer``.

One process updates a Llama in float32 from given gradients, in turns by this repository's AdamW, its Muon (with AdamW
for what are no matrices of blocks), and torch's Muon and fused AdamW, each with clipping. What is noted is the
processor's time of one thread, which other work on the machine changes little. torch multiplies in bfloat16, Evo on a
CPU in float32, so that results are compared loosely; a larger difference ends the benchmark.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from benchmarks.peer_models import Shape, evo
from evo_core.model.decoder import Decoder
from evo_core.optim.groups import groups_of
from evo_core.optim.muon import Muon
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.train.matrices import matrices_of
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

LR, DECAY, CLIP = 1e-3, 0.1, 1.0
ADAMW, MUON, NARROW, TORCH = "AdamW", "Muon", "Muon in bfloat16", "torch's Muon and AdamW"
TOLERANCE = 0.2
"""Of what parameters have moved: bfloat16 rounds small singular values, which an update raises."""

Update = Callable[[], None]


def ours(model: Decoder, muon: Muon | None) -> Update:
    """Norm, clipping and update by this repository's optimizer."""
    matrices = matrices_of(model) if muon is not None else {}
    groups = groups_of(model, mesh := mesh_of(1), matrices=matrices)
    optimizer = Zero1AdamW(groups, mesh.world, weight_decay=DECAY, clip_grad_norm=CLIP, muon=muon)

    def update() -> None:
        optimizer.begin()
        optimizer.collect()
        optimizer.reduce(torch.zeros(0, dtype=torch.float64))
        optimizer.step(LR, 0.95)

    return update


def torchs(model: Decoder) -> Update:
    """The same by torch's."""
    matrices = set(matrices_of(model))
    named = list(model.named_parameters())
    both: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            [param for name, param in named if name in matrices],
            lr=LR,
            weight_decay=DECAY,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [param for name, param in named if name not in matrices],
            lr=LR,
            betas=(0.9, 0.95),
            weight_decay=DECAY,
            fused=True,
        ),
    ]

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for each in both:
            each.step()

    return update


def measure(shape: Shape, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of the processor by contestant, one a round; on this rank, the only one.

    Raises:
        SystemExit: Muon's parameters are others than torch's.
    """
    torch.set_num_threads(1)
    models = {name: evo(shape) for name in (ADAMW, MUON, NARROW, TORCH)}
    start = {name: param.detach().clone() for name, param in models[TORCH].named_parameters()}
    updates = {
        ADAMW: ours(models[ADAMW], None),
        MUON: ours(models[MUON], Muon()),
        NARROW: ours(models[NARROW], Muon(products=torch.bfloat16)),
        TORCH: torchs(models[TORCH]),
    }
    found: dict[str, list[float]] = {name: [] for name in updates}
    for number in range(rounds + 1):  # the first finds its memory
        for name, update in updates.items():
            give(models[name], number)
            began = time.process_time()
            update()
            if number:
                found[name].append(1e3 * (time.process_time() - began))
    check(models, start)
    return found


def give(model: Decoder, number: int) -> None:
    """Set the gradients of a round, the same for every contestant."""
    generator = torch.Generator().manual_seed(number)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=generator)


def check(models: Mapping[str, Decoder], start: Mapping[str, Tensor]) -> None:
    """Compare both of our Muons with torch's."""
    expected = dict(models[TORCH].named_parameters())
    for contestant in (MUON, NARROW):
        for name, param in models[contestant].named_parameters():
            moved = (expected[name] - start[name]).norm()
            if not (param - expected[name]).norm() <= TOLERANCE * moved:
                raise SystemExit(f"{contestant}: {name} is another than torch's: void")


def run(shape: Shape, rounds: int) -> dict[str, list[float]]:
    """By contestant."""
    found: dict[str, list[float]] = run_on_ranks(measure, 1, shape, rounds, timeout=600)[0]
    return found


def show(found: Mapping[str, list[float]], shape: Shape) -> Iterator[str]:
    """The lines of the table."""
    yield f"  clipping and update of {shape.layers} layers of {shape.hidden}, one thread, ms of the processor"
    for name, times in found.items():
        ratio = statistics.median(each / adamw for each, adamw in zip(times, found[ADAMW], strict=True))
        yield f"  {name:32} {statistics.median(times):8.1f}   {ratio:5.1f}x AdamW's (median of rounds)"
