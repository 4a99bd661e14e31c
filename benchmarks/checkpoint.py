"""Saving and loading a training state beside torch's own ways: ``python -m benchmarks.checkpoint``.

Ranks of this machine hold a decoder in float32 and the moments of its AdamW, of which each rank writes about 256 MB. In
turns it is saved and loaded by this repository (digests, manifest, comparison of what ranks hold in common), by
torch.distributed.checkpoint (DCP) with its defaults, and by torch.save and torch.load, a file a rank: in memory
(/dev/shm), on the local disk, and in S3 (a SeaweedFS on this machine; DCP writes there by fsspec and s3fs, and
torch.save a file that boto3 uploads). What is loaded is compared with what was saved. Medians of rounds, of the slowest
rank:

- ``save``, ``load``: seconds, and of the process's own CPU time, which other load on the machine changes less. Files
  are read from the page cache. Only torch.save does not wait until the bytes are on the disk;
- ``blocks``: seconds for which a save in the background keeps the step waiting, planning included, and the share of the
  same system's save that they are;
- ``step``: time of the training steps that run while it is written, of that of steps before it;
- ``costs``: all that such a save adds to the training, waiting and slower steps, as a share of a save that waits;
- ``memory``: MB by which a rank grows at most in its first save in the background, and in its second.

With S3, a last line counts what one of two ranks asks for to load its part of a smaller state that four have saved.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.results import Row, judged, output_file
from benchmarks.savers import BackgroundSaver, Dcp, Evo, Plain, Saver, Training, layers_of
from evo_core.checkpoint.agreement import check_agreement
from evo_core.checkpoint.checksum import checksums
from evo_core.checkpoint.saving import tensors_of
from evo_core.checkpoint.staging import stage
from evo_core.storage import files
from evo_core.storage.location import Location, is_remote
from tests.memory import growing
from tests.ranks import run_on_ranks
from tests.s3_requests import Requests, counted
from tests.s3_server import s3_server

EVO, DCP, DCP_PROCESS, PLAIN = "Evo", "DCP", "DCP, a process", "torch.save"
SPEED_BAR, BLOCK_BAR = 0.8, 0.10
MEMORY, DISK, S3 = "memory", "disk", "s3"
WRITERS, READERS = 4, 2
QUICK = ("--ranks", "1", "--megabytes", "8", "--places", "memory", "--rounds", "1")
STEPS = 4
"""Before each save in the background."""

Times = dict[str, dict[str, list[float]]]
"""By contestant and quantity, one a round, of one rank."""


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process's threads, all ranks at once."""
    dist.barrier()
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


# --- one rank


def measure(root: Location, layers: int, zero: int, rounds: int, processes: bool) -> dict[str, Any]:
    """Times of each contestant on this rank."""
    training = Training(layers, zero)
    behind: dict[str, BackgroundSaver] = {EVO: Evo(training), DCP: Dcp(training)}
    waiting: dict[str, Saver] = {**behind, PLAIN: Plain(training)}
    if processes and not is_remote(root):
        behind[DCP_PROCESS] = Dcp(training, processes=True)
    times: Times = defaultdict(lambda: defaultdict(list))
    for number in range(rounds + 1):  # the first finds memory, connections and threads
        for name, saver in waiting.items():
            with place(root) as here:
                spent = {"save": timed(partial(saver.save, here)), "load": loaded(name, saver, here)}
                for kind, (seconds, cpu) in spent.items() if number else ():
                    times[name][kind].append(seconds)
                    times[name][f"{kind} cpu"].append(cpu)
        for name, saver in behind.items():
            with place(root) as here:
                figures = during(training, saver, here)
                for kind, value in figures.items() if number else ():
                    times[name][kind].append(value)
        if number:
            times[EVO]["compare"].append(timed(lambda: compare(training))[0])
    for saver in behind.values():
        saver.close()
    own = sum(values.nbytes for values in waiting[PLAIN].values().values())
    return {"times": {name: dict(each) for name, each in times.items()}, "bytes": own}


def compare(training: Training) -> None:
    """What ranks hold in common, as before every save."""
    check_agreement(stage(tensors_of(training.model, training.optimizer.state())).described)


def loaded(name: str, saver: Saver, here: Location) -> tuple[float, float]:
    """Time of loading, into what holds other values before it and must hold those that were saved after it."""
    values = list(saver.values().values())
    before = checksums(values)()
    for each in values:
        each.data.zero_()
    spent = timed(lambda: saver.load(here))
    if checksums(values)() != before:
        raise SystemExit(f"{name} has loaded other values than it saved: void")
    return spent


def during(training: Training, saver: BackgroundSaver, here: Location) -> dict[str, float]:
    """Steps without and with a save behind them."""
    alone = [timed(training.step)[0] for _ in range(STEPS)]
    begun: list[Any] = []
    blocked, blocked_cpu = timed(lambda: begun.append(saver.begin(here)))
    steps, done = [], torch.zeros(1)
    while not done:
        steps.append(timed(training.step)[0])
        done.fill_(float(begun[0].done()))
        dist.all_reduce(done, op=dist.ReduceOp.MIN)  # all ranks take as many
    waited = timed(begun[0].wait)[0]
    usual = statistics.median(alone)
    return {
        "blocks": blocked,
        "blocks cpu": blocked_cpu,
        "step": statistics.median(steps) / usual,
        "adds": blocked + waited + sum(steps) - usual * len(steps),
    }


def memory(root: Location, layers: int, zero: int, which: str) -> list[float]:
    """MB by which this rank grows in the first save in the background, and in the second."""
    training = Training(layers, zero)
    saver: BackgroundSaver = {EVO: Evo, DCP: Dcp}[which](training)
    found = []
    for _ in range(2):
        with place(root) as here:
            dist.barrier()
            with growing() as grown:
                saver.begin(here).wait()
            found.append(grown.peak / 1e6)
    return found


def written(here: Location, layers: int) -> None:
    """A checkpoint of these ranks, to be read by others."""
    Evo(Training(layers, dist.get_world_size())).save(here)


def asked(here: Location, layers: int) -> tuple[Requests, int]:
    """What this rank asks the store for to load its part of it, and the bytes that it holds then."""
    training = Training(layers, dist.get_world_size())
    saver = Evo(training)
    with counted(str(here)) as requests:
        saver.load(here)
    return requests, sum(each.local.nbytes for each in training.held().values())


@contextmanager
def place(root: Location) -> Iterator[Location]:
    """A place that all ranks know, for one checkpoint: gone after the block."""
    box = [f"{time.time_ns()}"]
    dist.broadcast_object_list(box)
    here = files.below(root, box[0])
    try:
        yield here
        dist.barrier()
    finally:
        if dist.get_rank() == 0:
            if is_remote(here):
                files.delete(here)
            else:
                shutil.rmtree(here, ignore_errors=True)
        dist.barrier()


# --- all ranks


def combine(ranks: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians of the slowest rank's times, by contestant and quantity."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for name, quantities in ranks[0]["times"].items():
        for kind in quantities:
            rounds = zip(*(rank["times"][name][kind] for rank in ranks), strict=True)
            found[name][kind] = statistics.median(max(each) for each in rounds)
    return dict(found)


def show(found: dict[str, dict[str, float]], grown: dict[str, list[float]]) -> Iterator[str]:
    """The lines of one place."""
    times = f"{'save':>8} {'load':>8} {'CPU-s':>7} {'CPU-s':>7}"
    yield f"  {'':15} {times} {'blocks':>16} {'step':>7} {'costs':>7} {'memory':>9}"
    saves = {DCP_PROCESS: DCP}
    for name, figures in found.items():
        line = f"  {name:15}"
        for kind, width in (("save", 8), ("load", 8), ("save cpu", 7), ("load cpu", 7)):
            line += f" {figures[kind]:{width}.3f}" if kind in figures else " " * (width + 1)
        if "blocks" in figures:
            whole = found[saves.get(name, name)]["save"]
            blocks = f"{figures['blocks']:.3f} ({figures['blocks'] / whole:.1%})"
            line += f" {blocks:>16} {figures['step']:6.2f}x {figures['adds'] / whole:7.0%}"
        if name in grown:
            line += f" {grown[name][0]:4.0f} {grown[name][1]:4.0f}"
        yield line.rstrip()
    ours, peer, plain = found[EVO], found[DCP], found[PLAIN]
    for kind in ("save", "load"):
        speed, cpu = peer[kind] / ours[kind], peer[f"{kind} cpu"] / ours[f"{kind} cpu"]
        bar = f"; bar {SPEED_BAR}: {_reached(speed >= SPEED_BAR)}" if kind == "save" else ""
        beside = f"{plain[kind] / ours[kind]:.2f}x as fast as torch.{kind}"
        yield f"  {kind}: Evo is {speed:.2f}x as fast as DCP (by CPU time {cpu:.2f}x), {beside}{bar}"
    share, cpu = ours["blocks"] / ours["save"], ours["blocks cpu"] / ours["save cpu"]
    bar = f"bar {BLOCK_BAR:.0%}: {_reached(share <= BLOCK_BAR)}"
    yield f"  a step waits for {share:.1%} of a save (by CPU time {cpu:.1%}); {bar}"
    yield f"  comparing what ranks hold in common takes {ours['compare'] / ours['save']:.1%} of a save"


def show_requests(requests: Requests, held: int) -> str:
    """What one rank asked for, in a line."""
    tensors = {key: size for key, size in requests.read.items() if key.endswith(".distcp")}
    calls = ", ".join(f"{count} {name}" for name, count in sorted(requests.calls.items()))
    return (
        f"  one of {READERS} ranks loads what {WRITERS} have saved: it holds {held / 1e6:.0f} MB, and reads "
        f"{sum(tensors.values()) / 1e6:.0f} MB of {len(tensors)} files of tensors of {2 * WRITERS} ({calls})"
    )


def rows(results: dict[str, dict[str, dict[str, float]]]) -> Iterator[Row]:
    """Of what is written: saving and loading beside DCP and torch.save, and how much of a save a step waits for."""
    for place_, found in results.items():
        for kind in ("save", "load"):
            for peer in (DCP, PLAIN):
                bar = SPEED_BAR if (kind, peer) == ("save", DCP) else None
                more = {"peer": peer, "peer_value": found[peer][kind], "less_is_better": True, "bar": bar}
                yield judged("checkpoint", f"{place_}: {kind}", found[EVO][kind], "s", **more)
        share = found[EVO]["blocks"] / found[EVO]["save"]
        yield judged("checkpoint", f"{place_}: a step waits for", share, "of a save", bar=BLOCK_BAR, at_most=True)


def _reached(yes: bool) -> str:
    return "reached" if yes else "MISSED"


@contextmanager
def root_of(kind: str, folder: Path | None) -> Iterator[Location]:
    """Where the checkpoints of a kind of place lie; nothing of it is left after the block."""
    if kind == S3:
        with s3_server() as server:
            os.environ.update(server.environment)
            yield f"s3://{server.new_bucket()}/runs"
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm" if kind == MEMORY else folder) as path:
        yield Path(path)


def main() -> None:
    """Measure and print; with --json write the figures too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="(1 2)")
    parser.add_argument("--zero", type=int, help="ranks that share one copy of the moments (all)")
    parser.add_argument("--megabytes", type=float, default=256, help="that a rank writes, about (256)")
    parser.add_argument("--places", nargs="+", choices=(MEMORY, DISK, S3), default=[MEMORY, DISK, S3], help="(all)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (a temporary one)")
    parser.add_argument("--rounds", type=int, default=5, help="that are measured, after one that is not (5)")
    parser.add_argument("--processes", action="store_true", help="DCP's async_save in a process of its own, too")
    parser.add_argument("--json", type=output_file, metavar="FILE")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; ranks of one thread over gloo")
    results = {}
    for ranks in arguments.ranks:
        zero = arguments.zero or ranks
        layers = layers_of(arguments.megabytes, ranks)
        for kind in arguments.places:
            last: str | None = None
            with root_of(kind, arguments.folder) as root:
                rounds, processes = arguments.rounds, arguments.processes
                each = run_on_ranks(measure, ranks, root, layers, zero, rounds, processes, timeout=1800)
                own = max(rank["bytes"] for rank in each) / 1e6
                grown = {
                    name: [max(mb) for mb in zip(*some, strict=True)]
                    for name in (EVO, DCP)
                    if (some := run_on_ranks(memory, ranks, root, layers, zero, name, timeout=600))
                }
                if kind == S3 and ranks == arguments.ranks[-1]:
                    here, small = files.below(root, "read"), layers_of(arguments.megabytes / WRITERS, WRITERS)
                    run_on_ranks(written, WRITERS, here, small, timeout=600)
                    last = show_requests(*run_on_ranks(asked, READERS, here, small, timeout=600)[0])
            found = results[f"{ranks} ranks, zero {zero}, {kind}"] = combine(each)
            print(f"{ranks} rank{'s' * (ranks > 1)} x {own:.0f} MB, ZeRO {zero}, {kind}:")
            print("\n".join(show(found, grown)), flush=True)
            if last is not None:
                print(last, flush=True)
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
