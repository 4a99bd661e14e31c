"""What a step waits for, holds and updates, beside torch's own: ``python -m benchmarks.optimizer``.

Waiting: one Llama is trained on ranks of this machine with each of `overlap_sync_grad` and `overlap_sync_param` on and
off, by torch's DistributedDataParallel with ZeroRedundancyOptimizer, and by its `fully_shard`. All begin with the same
weights and see the same batches in turns; their losses are compared at every step, and a difference ends the benchmark.
Medians over rounds, of the slowest rank:

- ``gradients``, ``parameters``, ``norm``: milliseconds in which a step waits for each, and ``waiting`` of all. Waiting
  for gradients holds the sum that a reduce-scatter forms, and waiting for the norm what a rank is ahead of another;
- ``step``: milliseconds of forward, backward, clipping and AdamW. Messages between ranks of one machine are copies by
  the cores that compute, so that it says little of what there is to hide.

Memory (rank_memory.py): bytes of a rank by what they are, counted, and as docs/training.md states them.

Update (updates.py): clipping and AdamW over a rank's share, beside torch's over as many elements.

Muon (matrix_updates.py): an update of a model by Muon, beside AdamW and torch's Muon.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import fsdp_peer, matrix_updates, rank_memory, updates, zero_peer
from benchmarks.peer_models import Shape, evo
from benchmarks.results import Row, judged, output_file
from evo_core.model.decoder import Decoder
from evo_core.optim.groups import groups_of
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.collectives import all_reduce, counting
from evo_core.train.optimizer import wait_where_read
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

LR, TOLERANCE = 1e-3, 1e-4
QUICK = ("--ranks", "2", "--layers", "2", "--hidden", "64", "--tokens", "64", "--rounds", "2", "--elements", "100000")
OFF, GRADIENTS, PARAMETERS, BOTH = "no overlap", "overlap_sync_grad", "overlap_sync_param", "both"
WAYS = {OFF: (False, False), GRADIENTS: (True, False), PARAMETERS: (False, True), BOTH: (True, True)}
DDP, FSDP = "DDP + ZeroRedundancyOptimizer", "fully_shard"
OF_COLLECTIVE = {"reduce_scatter": "gradients", "all_gather": "parameters", "all_reduce": "norm"}
CLOCKS = ("gradients", "parameters", "norm", "waiting", "step")

Step = Callable[[Tensor], Tensor]
"""Takes a whole step on ids [T + 1]: the mean of all ranks' losses."""


def loss_of(model: Any, ids: Tensor) -> Tensor:
    """Of a decoder, or what torch has made of one."""
    tokens = len(ids) - 1
    ends = torch.tensor([0, tokens], dtype=torch.int32)
    loss: Tensor = model(ids[:-1], torch.arange(tokens), ends, labels=ids[1:], max_seqlen=tokens).loss
    return loss


def ours(model: Decoder, ways: tuple[bool, bool]) -> Step:
    """By this repository's optimizer; messages are as large as a block."""
    mesh = mesh_of(-1)
    of_block = sum(param.numel() for param in model.blocks["0"].parameters())
    optimizer = Zero1AdamW(
        groups_of(model, mesh),
        mesh.world,
        clip_grad_norm=1.0,
        bucket_size=of_block,
        overlap=ways[0],
        order=(name for name, _ in model.named_parameters()),
        overlap_params=ways[1],
        gather_size=of_block,
    )
    if ways[1]:
        wait_where_read(model, optimizer)

    def step(ids: Tensor) -> Tensor:
        optimizer.begin()
        loss = loss_of(model, ids)
        optimizer.backward(loss, last=True)
        _, total = optimizer.reduce(loss.detach().double().view(1))
        optimizer.step(LR, 0.95)
        return total / mesh.world.size

    return step


def torchs(model: torch.nn.Module, update: Callable[[], object]) -> Step:
    """By torch's."""

    def step(ids: Tensor) -> Tensor:
        model.zero_grad()
        loss = loss_of(model, ids)
        loss.backward()
        update()
        total = loss.detach().double().view(1)
        all_reduce(total, dist.group.WORLD).wait()  # type: ignore[arg-type]
        return total / dist.get_world_size()

    return step


def contestants(shape: Shape) -> dict[str, Step]:
    """Each with the same weights."""
    steps = {name: ours(evo(shape), ways) for name, ways in WAYS.items()}
    model = evo(shape)
    ddp = zero_peer.distributed(model, 4 * sum(param.numel() for param in model.blocks["0"].parameters()))
    sharded = fsdp_peer.sharded(evo(shape), mesh_of(-1).devices["zero"])
    return {
        **steps,
        DDP: torchs(ddp, zero_peer.optimizer(ddp, LR)[1]),
        FSDP: torchs(sharded, fsdp_peer.optimizer(sharded, LR)),
    }


def measure(shape: Shape, tokens: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each contestant on this rank, by clock, one a round.

    Raises:
        SystemExit: losses differ.
    """
    steps = contestants(shape)
    found: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in steps}
    for number in range(rounds + 1):  # the first turn finds memory and threads
        batches = [batch(shape, tokens, 2 * number + i) for i in range(2)]
        losses = {}
        begins = number % len(steps)  # none always comes behind the same one
        for name, step in [*steps.items()][begins:] + [*steps.items()][:begins]:
            dist.barrier()
            first = float(step(batches[0]))  # what it leaves under way the next one waits for
            losses[name] = first, taken(step, batches[1], found[name] if number else None)
        for name, pair in losses.items():
            for loss, expected in zip(pair, losses[OFF], strict=True):
                if not abs(loss - expected) <= (0.0 if name in WAYS else TOLERANCE * expected):
                    raise SystemExit(f"{name}: loss {loss} in round {number}, without overlap {expected}: void")
    return found


def batch(shape: Shape, tokens: int, number: int) -> Tensor:
    """Ids [tokens + 1] of this rank's."""
    generator = torch.Generator().manual_seed(number * dist.get_world_size() + dist.get_rank())
    return torch.randint(shape.vocab, (tokens + 1,), generator=generator)


def taken(step: Step, ids: Tensor, figures: dict[str, list[float]] | None) -> float:
    """The loss of a step; how long it took, and what of it was waiting, is noted in `figures`."""
    with counting() as traffic:
        began = time.perf_counter()
        loss = float(step(ids))
        seconds = time.perf_counter() - began
    if figures is not None:
        waits = {OF_COLLECTIVE[name]: waited for name, waited in traffic.waits.items()}
        for clock, value in zip(
            CLOCKS, (*(waits.get(clock, 0.0) for clock in CLOCKS[:3]), traffic.waited, seconds), strict=True
        ):
            figures[clock].append(1e3 * value)
    return loss


# --- all ranks


def combine(ranks: list[dict[str, dict[str, list[float]]]]) -> dict[str, dict[str, float]]:
    """Medians over rounds, each of the slowest rank's."""
    return {
        name: {
            clock: statistics.median(max(times) for times in zip(*(rank[name][clock] for rank in ranks), strict=True))
            for clock in clocks
        }
        for name, clocks in ranks[0].items()
    }


def show(found: dict[str, dict[str, float]]) -> Iterator[str]:
    """The lines of one number of ranks."""
    yield "  {:28} {:>10} {:>11} {:>7} {:>8} {:>8}   ms".format("waiting for", *CLOCKS)
    for name, figures in found.items():
        of_ours = [f"{figures[clock]:.1f}" for clock in CLOCKS[:4]] if name in WAYS else [""] * 4
        line = "  {:28} {:>10} {:>11} {:>7} {:>8} ".format(name, *of_ours)
        yield line + f"{figures['step']:8.1f}"
    without = found[OFF]
    for what, way in (("gradients", GRADIENTS), ("parameters", PARAMETERS), ("waiting", BOTH)):
        share = found[way][what] / without[what] if without[what] else float("nan")
        yield f"  {way}: {share:.2f} of the {'wait for ' + what if what != 'waiting' else 'waiting'} without overlap"
    ratios = (f"{found[peer]['step'] / found[BOTH]['step']:.2f}x as long ({peer})" for peer in (DDP, FSDP))
    yield f"  beside a step with both, torch's take {', '.join(ratios)}"


def rows(results: dict[str, Any]) -> Iterator[Row]:
    """Of what is written: waiting beside that without overlap, and steps beside torch's."""
    for name, found in results.items():
        if not name.startswith("waiting"):
            continue
        ranks = name.removeprefix("waiting, ")
        more: dict[str, Any] = {"peer": OFF, "peer_value": found[OFF]["waiting"], "less_is_better": True}
        yield judged("optimizer", f"{ranks}: a step waits, {BOTH} overlaps", found[BOTH]["waiting"], "ms", **more)
        for peer in (DDP, FSDP):
            more = {"peer": peer, "peer_value": found[peer]["step"], "less_is_better": True}
            yield judged("optimizer", f"{ranks}: a step", found[BOTH]["step"], "ms", **more)
    for name, (ours_, theirs) in results.get("update", {}).items():
        more = {"peer": "torch's fused AdamW", "peer_value": statistics.median(theirs), "less_is_better": True}
        yield judged("optimizer", f"clipping and update of {name}", statistics.median(ours_), "ms", **more)


def main() -> None:
    """Measure and print; with --json write the figures too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("waiting", "memory", "update", "muon"), nargs="+", help="(all)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="(2 4)")
    parser.add_argument("--layers", type=int, default=6, help="of the model that is trained (6)")
    parser.add_argument("--hidden", type=int, default=256, help="(256)")
    parser.add_argument("--vocab", type=int, default=1024, help="(1024)")
    parser.add_argument("--tokens", type=int, default=256, help="of a step on each rank (256)")
    parser.add_argument("--rounds", type=int, default=15, help="that are measured, after one that is not (15)")
    parser.add_argument("--elements", type=int, default=20_000_000, help="that are updated (20000000)")
    parser.add_argument("--json", type=output_file, metavar="FILE")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; ranks of one thread over gloo")
    shape = Shape(arguments.layers, arguments.hidden, max(4, arguments.hidden // 64), arguments.vocab)
    only = arguments.only or ("waiting", "memory", "update", "muon")
    results: dict[str, Any] = {}
    if "waiting" in only:
        for ranks in arguments.ranks:
            found = combine(run_on_ranks(measure, ranks, shape, arguments.tokens, arguments.rounds, timeout=600))
            results[f"waiting, {ranks} ranks"] = found
            layers = f"{shape.layers} layers x {shape.hidden}, {arguments.tokens} tokens"
            print("\n".join([f"{ranks} ranks, ZeRO {ranks}, float32, {layers}:", *show(found)]), flush=True)
    if "memory" in only:
        results["memory"] = rows = rank_memory.run(shape)
        print("\n".join(rank_memory.show(rows)), flush=True)
    if "update" in only:
        results["update"] = times = updates.run(arguments.elements, arguments.rounds)
        print("\n".join(updates.show(times)), flush=True)
    if "muon" in only:
        small = Shape(4, 256, 4, 4096)  # as the demo's
        results["muon"] = taken_by = matrix_updates.run(small, arguments.rounds)
        print("\n".join(matrix_updates.show(taken_by, small)), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
