"""What a save consists of, in time: ``python -m benchmarks.checkpoint``.

Ranks on this machine save a decoder in bfloat16 whose optimizer keeps float32 moments and master values, by ZeRO cut
over all ranks or, with ``--zero 1``, held by each. Of the slowest rank, the best of several rounds:

- ``compare``: checksums of what several ranks hold, gathered and compared before anything is written;
- ``write``: each rank its pieces, by torch.distributed.checkpoint;
- ``digest``: SHA-256 of what was written;
- ``read``: the same pieces back.

Seconds of the wall clock, and of the process's own CPU time, which other load on the machine changes less.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from evo_core.checkpoint.agreement import check_agreement, describe
from evo_core.checkpoint.records import file_record
from evo_core.checkpoint.tensors import read_tensors, write_tensors
from evo_core.placement import Placed, Placement
from tests.ranks import run_on_ranks

PARTS = ("compare", "write", "digest", "read")


def shapes(parameters: float, layers: int = 12) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a decoder of about that many parameters."""
    width = max(64, int((parameters / layers / 12) ** 0.5) // 64 * 64)
    block = {"wqkv": (3 * width, width), "wo": (width, width), "w13": (16 * width // 3, width),
             "w2": (width, 8 * width // 3), "norm1": (width,), "norm2": (width,)}  # fmt: skip
    return {f"layers.{n}.{name}": shape for n in range(layers) for name, shape in block.items()}


def tensors(parameters: float, zero: int) -> dict[str, Placed]:
    """What a rank holds: the weights, and its share of the optimizer's states."""
    rank, world = dist.get_rank(), dist.get_world_size()
    same_share = range(rank % zero, world, zero)
    made = {}
    generator = torch.Generator().manual_seed(0)  # all ranks alike
    for name, shape in shapes(parameters).items():
        placement = Placement.whole(shape, range(world))
        made[name] = Placed(torch.randn(shape, generator=generator).bfloat16(), placement)
        share = placement.share(rank % zero, zero, same_share)
        for state in ("exp_avg", "exp_avg_sq", "master"):
            made[f"{state}.{name}"] = Placed(torch.full(share.local_shape, 0.5), share)
    return made


def timed(work: Callable[[], None]) -> tuple[float, float]:
    dist.barrier()
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


def measure(parameters: float, zero: int, rounds: int, root: Path) -> dict[str, list[tuple[float, float]]]:
    here = tensors(parameters, zero)
    times: dict[str, list[tuple[float, float]]] = {part: [] for part in PARTS}
    for number in range(rounds):
        folder = root / str(number)
        own = f"__{dist.get_rank()}_*"
        times["compare"].append(timed(lambda: check_agreement(describe(here))))
        times["write"].append(timed(lambda folder=folder: write_tensors(folder, here)))  # type: ignore[misc]
        times["digest"].append(timed(lambda folder=folder, own=own: [*map(file_record, folder.glob(own))] and None))  # type: ignore[misc]
        times["read"].append(timed(lambda folder=folder: read_tensors(folder, here)))  # type: ignore[misc]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--parameters", type=float, default=50e6, help="of the model (default 50e6)")
    parser.add_argument("--ranks", type=int, default=2, help="(default 2)")
    parser.add_argument("--zero", type=int, help="ranks that share one copy of the states (default all)")
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    arguments = parser.parse_args()
    zero = arguments.zero or arguments.ranks
    with tempfile.TemporaryDirectory() as folder:
        ranks = run_on_ranks(
            measure, arguments.ranks, arguments.parameters, zero, arguments.rounds, Path(folder), timeout=900
        )
    count = sum(torch.Size(shape).numel() for shape in shapes(arguments.parameters).values())
    print(f"{count / 1e6:.0f} M parameters, {14 * count / 1e6:.0f} MB, {arguments.ranks} ranks, zero {zero}: seconds")
    best = {}
    for part in PARTS:
        rounds = [
            [max(times) for times in zip(*each, strict=True)] for each in zip(*(r[part] for r in ranks), strict=True)
        ]
        best[part] = [min(times) for times in zip(*rounds, strict=True)]
        print(f"{part:10} wall {best[part][0]:7.3f}   cpu {best[part][1]:7.3f}")
    for kind, name in enumerate(("wall", "cpu")):
        save = best["write"][kind] + best["digest"][kind]
        print(f"compare / (write + digest), {name}: {best['compare'][kind] / save:.1%}")


if __name__ == "__main__":
    main()
