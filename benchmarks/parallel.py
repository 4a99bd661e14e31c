"""What sharing a model costs and spares, beside torch's own: ``python -m benchmarks.parallel``.

Of tensor parallelism (pipelines are in pipeline.py, isp is in gathering.py): one Llama is trained on ranks of this
machine by each mode (mtp, msp, fsp), by one process, and by torch's tensor parallelism over DTensor with and without
its sequence parallelism. All have the same weights and documents; losses and gradients are compared with one process's,
and a difference ends the benchmark. Of each micro-batch is printed:

- ``sent``: bytes that a rank sends, counted and by formula (traffic.py), which must be equal;
- ``kept``: memory that the forward pass keeps for the backward pass, on one rank;
- ``step``: milliseconds of forward, backward, clipping and AdamW, median over rounds in which all take turns, of the
  slowest rank. One process has one thread, as each rank does. The learning rate is 0, so that all keep their weights;
- ``waiting``: milliseconds of these in which a rank waits for others or for what they send, median, of the rank that
  waits longest. Some of it is the sum that a reduce-scatter forms.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import gathering, pipeline
from benchmarks.dtensor_peer import DTensorDecoder
from benchmarks.peer_models import Shape, evo
from benchmarks.results import Row as Result
from benchmarks.results import judged, output_file
from benchmarks.traffic import kept, sent
from evo_core.model.decoder import Decoder
from evo_core.model.ops.documents import Documents
from evo_core.optim.groups import groups_of
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.collectives import all_reduce, counting
from evo_core.parallel.mesh import Mesh
from evo_core.placement import Placed, placements_of
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

MODES = ("mtp", "msp", "fsp")
PEERS = {"DTensor": False, "DTensor, sequence parallel": True}
PEER_OF = {"mtp": "DTensor", "msp": "DTensor, sequence parallel", "fsp": "DTensor, sequence parallel"}
ONE = "one process"
LAYERS, VOCABULARY = 4, 4096
TOLERANCE = {"loss": 1e-5, "gradients": 1e-4}
CLOCKS = ("seconds", "cpu_seconds", "waited")
QUICK = ("--rows", "256x128", "--pipeline-rows", "64x128x4", "--isp-rows", "1x2x256x256", "--rounds", "1")


class Row(NamedTuple):
    """One comparison."""

    hidden: int
    tokens: int

    @property
    def shape(self) -> Shape:
        """Of the model: heads of 64."""
        return Shape(LAYERS, self.hidden, max(4, self.hidden // 64), VOCABULARY)

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"{LAYERS} layers x {self.hidden}, {self.tokens} tokens"


#: What DTensor adds is time per operation, whatever the size of tensors: the bar is for a step of little work.
BAR, BAR_ROW = 3.0, Row(256, 128)
ROWS = [BAR_ROW, Row(256, 512), Row(1024, 512)]


class Batch:
    """Random documents, a quarter of the tokens in the first."""

    def __init__(self, tokens: int) -> None:
        ids = torch.randint(VOCABULARY, (tokens + 1,), generator=torch.Generator().manual_seed(1))
        lengths = (tokens // 4, tokens - tokens // 4)
        self.input_ids, self.labels = ids[:-1], ids[1:]
        self.positions = torch.cat([torch.arange(length) for length in lengths])
        self.cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        self.longest = max(lengths)

    @property
    def documents(self) -> Documents:
        return Documents(self.cu_seqlens, self.longest)

    def loss(self, model: Decoder) -> Tensor:
        """Of one of our decoders."""
        ends, longest = self.cu_seqlens, self.longest
        loss = model(self.input_ids, self.positions, ends, labels=self.labels, max_seqlen=longest).loss
        assert loss is not None
        return loss

    def train(self, model: Decoder) -> Tensor:
        """The loss of one of our decoders, in which gradients are left."""
        loss = self.loss(model)
        loss.backward()
        return loss.detach()


# --- contestants, on each rank


class Contestant(NamedTuple):
    """A model that is trained.

    Attributes:
        step: computes its loss and leaves gradients.
        deviation: the largest of these from whole ones.
        trainer: makes what takes whole steps; gradients are its own then.
    """

    model: torch.nn.Module
    step: Callable[[], Tensor]
    deviation: Callable[[dict[str, Tensor]], float]
    trainer: Callable[[], Callable[[], object]]


def ours(mode: str, whole: Decoder, batch: Batch, mesh: Mesh) -> Contestant:
    """This repository's, with the weights of a whole model."""
    model: Any = build_parallel(whole.cfg, mesh, "cpu", mode=mode)
    weights, held = dict(whole.named_parameters()), placements_of(model)
    for name, parameter in model.named_parameters():
        Placed(parameter.data, held[name]).fill(weights[name].data)

    def deviation(gradients: dict[str, Tensor]) -> float:
        worst = 0.0
        for name, parameter in model.named_parameters():
            gradient, placement = parameter.grad.clone(), held[name]
            # The optimizer would sum these: what is whole here, where each rank saw its own rows of the sequence.
            if model.held[name].partial and placement.local_shape == placement.shape:
                all_reduce(gradient, mesh.tensor.group).wait()
            for piece, part in Placed(gradient, placement).pieces():
                worst = max(worst, _deviation(part, piece.where.of(gradients[name]), gradients[name]))
        return worst

    def trainer() -> Callable[[], object]:
        optimizer = Zero1AdamW(groups_of(model, mesh), mesh.world, clip_grad_norm=1.0)

        def train() -> None:
            optimizer.begin()
            loss = batch.loss(model)
            optimizer.backward(loss, last=True)
            optimizer.reduce(loss.detach().double().view(1))
            optimizer.step(0.0, 0.95)

        return train

    return Contestant(model, lambda: batch.train(model), deviation, trainer)


def one_process(model: Decoder, batch: Batch) -> Contestant:
    """The whole model, trained by torch's AdamW."""

    def trainer() -> Callable[[], object]:
        adamw = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

        def train() -> None:
            model.zero_grad()
            batch.train(model)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()

        return train

    return Contestant(model, lambda: batch.train(model), lambda _: 0.0, trainer)


def torchs(sequence_parallel: bool, whole: Decoder, batch: Batch, mesh: Mesh) -> Contestant:
    """torch's, of the same model."""
    copy: Any = evo(Shape(whole.cfg.num_layers, whole.cfg.hidden_size, whole.cfg.num_attention_heads, VOCABULARY))
    peer = DTensorDecoder(copy, mesh.devices["tensor"], sequence_parallel=sequence_parallel)

    def step() -> Tensor:
        return peer.forward_backward(batch.input_ids, batch.positions, batch.documents, batch.labels)

    def deviation(gradients: dict[str, Tensor]) -> float:
        return max(_deviation(mine, gradients[name], gradients[name]) for name, mine in peer.gradients().items())

    def trainer() -> Callable[[], object]:
        update = peer.optimizer()

        def train() -> None:
            peer.model.zero_grad()
            step()
            update()

        return train

    return Contestant(peer.model, step, deviation, trainer)


def _deviation(mine: Tensor, theirs: Tensor, whole: Tensor) -> float:
    return float((mine - theirs).abs().max() / whole.abs().max())


# --- one rank


def measure(row: Row, rounds: int) -> dict[str, dict[str, Any]]:
    """Figures of each contestant on this rank."""
    mesh, whole, batch = mesh_of(tensor=dist.get_world_size()), evo(row.shape), Batch(row.tokens)
    loss = float(batch.train(whole))
    gradients = {name: weight.grad.clone() for name, weight in whole.named_parameters() if weight.grad is not None}
    contestants = {ONE: one_process(whole, batch)}
    contestants |= {mode: ours(mode, whole, batch, mesh) for mode in MODES}
    contestants |= {name: torchs(cut, whole, batch, mesh) for name, cut in PEERS.items()}
    found: dict[str, dict[str, Any]] = {name: {clock: [] for clock in CLOCKS} for name in contestants}
    for name, each in contestants.items():
        for _ in range(2):  # the second finds what the first has compiled and cached
            each.model.zero_grad()
            found[name]["loss"] = abs(float(each.step()) - loss) / loss
        found[name]["gradients"] = each.deviation(gradients)
    for name in (ONE, *MODES):
        model: Any = contestants[name].model
        found[name]["kept"] = kept(model, partial(batch.loss, model))
    for mode in MODES:
        with counting() as traffic:
            contestants[mode].step()
        found[mode]["sent"] = dict(traffic.bytes)
        found[mode]["formula"] = dict(sent(whole.cfg, mode, mesh.tensor.size, row.tokens, element=4))
    trainers = {name: each.trainer() for name, each in contestants.items()}
    for _ in range(rounds):
        for name, train in trainers.items():
            for figures in (None, found[name]):  # the first step only finds its memory again, as training would
                take_step(train, figures, alone=name == ONE)
    return found


def take_step(train: Callable[[], object], figures: dict[str, Any] | None, *, alone: bool) -> None:
    """Take one step, all ranks at once or the first alone, and note how long it took."""
    dist.barrier()
    if alone and dist.get_rank():
        return
    with counting() as traffic:
        began, used = time.perf_counter(), time.process_time()
        train()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - used
    if figures is not None:
        for clock, value in zip(CLOCKS, (seconds, cpu_seconds, traffic.waited), strict=True):
            figures[clock].append(value)


# --- all ranks


def combine(ranks: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """One set of figures: of times the slowest rank's, of the rest the first's, which must agree with the formula.

    Raises:
        SystemExit: a loss or gradient is another than one process's, or what was counted than the formula.
    """
    found = {}
    for name, first in ranks[0].items():
        figures = dict(first)
        for quantity, limit in TOLERANCE.items():
            figures[quantity] = max(rank[name][quantity] for rank in ranks)
            if not figures[quantity] <= limit:
                raise SystemExit(f"{name}: {quantity} differ by {figures[quantity]:.1e} from one process's: void")
        for rank in ranks:
            if rank[name].get("sent") != rank[name].get("formula"):
                raise SystemExit(f"{name} sent {rank[name]['sent']}, by formula {rank[name]['formula']}")
        for clock in CLOCKS:
            rounds = zip(*(rank[name][clock] for rank in ranks if rank[name][clock]), strict=True)
            figures[clock] = statistics.median(max(times) for times in rounds)
        found[name] = figures
    return found


def show(row: Row, found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The lines of a row."""
    worst = {quantity: max(figures[quantity] for figures in found.values()) for quantity in TOLERANCE}
    yield f"{row.name}: losses agree to {worst['loss']:.1e}, gradients to {worst['gradients']:.1e}"
    yield f"  {'':25} {'ms':>8} {'CPU-ms':>8} {'waiting':>16} {'MB sent':>9} {'MB kept':>9}"
    for name in (ONE, *MODES, *PEERS):
        figures = found[name]
        waiting = f"{1e3 * figures['waited']:.1f} ms ({figures['waited'] / figures['seconds']:.0%})"
        sizes = (f"{sum(figures['sent'].values()) / 1e6:.3f}" if "sent" in figures else "",
                 f"{figures['kept'] / 1e6:.3f}" if "kept" in figures else "")  # fmt: skip
        line = f"  {name:25} {1e3 * figures['seconds']:8.1f} {1e3 * figures['cpu_seconds']:8.1f}"
        yield f"{line} {waiting if name in MODES else '':>16} {sizes[0]:>9} {sizes[1]:>9}".rstrip()
    for mode in MODES:
        parts = ", ".join(f"{name} {size:,}" for name, size in sorted(found[mode]["sent"].items()))
        yield f"  {mode} sends, in bytes, as by formula: {parts}"
    ratios = {mode: found[peer]["seconds"] / found[mode]["seconds"] for mode, peer in PEER_OF.items()}
    line = "  DTensor takes " + ", ".join(f"{ratio:.2f}x as long as {mode}" for mode, ratio in ratios.items())
    if row == BAR_ROW:
        line += f"; bar {BAR:.1f}x: {'reached' if min(ratios.values()) >= BAR else 'MISSED'}"
    yield line


def rows(results: dict[str, Any]) -> Iterator[Result]:
    """Of what is written: of modes, pipelines and isp."""
    for name, found in results.items():
        if ONE in found and "mtp" in found:
            yield from _rows_of_modes(name, found)
        else:
            yield from pipeline.results(name, found)
            yield from gathering.results(name, found)


def _rows_of_modes(name: str, found: dict[str, dict[str, Any]]) -> Iterator[Result]:
    for mode, peer in PEER_OF.items():
        bar = BAR if name == BAR_ROW.name else None
        ours_, theirs = (1e3 * found[who]["seconds"] for who in (mode, peer))
        more: dict[str, Any] = {"peer": peer, "peer_value": theirs, "less_is_better": True, "bar": bar}
        yield judged("parallel", f"{name}: {mode}", ours_, "ms a step", **more)


def row_of(text: str) -> Row:
    """As on the command line: ``256x128``."""
    hidden, tokens = text.split("x")
    return Row(int(hidden), int(tokens))


def pipeline_row_of(text: str) -> pipeline.Row:
    """As on the command line: ``256x256x8``, or with recomputed blocks ``256x256x8x1``."""
    hidden, tokens, micro_num, *recomputed = text.split("x")
    return pipeline.Row(int(hidden), int(tokens), int(micro_num), *map(float, recomputed))


def isp_row_of(text: str) -> gathering.Row:
    """As on the command line: ``1x2x256x256``, or with recomputed blocks ``1x2x256x256x1``."""
    tensor, weight, hidden, tokens, *recomputed = text.split("x")
    return gathering.Row(int(tensor), int(weight), int(hidden), int(tokens), *map(float, recomputed))


def main() -> None:
    """Measure and print; with --json write the figures too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="(2)")
    parser.add_argument("--only", choices=("tensor", "pipeline", "isp"), help="one of them (all)")
    parser.add_argument(
        "--rows",
        type=row_of,
        nargs="+",
        default=ROWS,
        metavar="HIDDENxTOKENS",
        help="of tensor ranks (256x128 …)",
    )
    parser.add_argument(
        "--pipeline-rows",
        type=pipeline_row_of,
        nargs="+",
        default=pipeline.ROWS,
        metavar="HIDDENxTOKENSxMICRO_NUM[xRECOMPUTED]",
        help="(64x128x4 …)",
    )
    parser.add_argument(
        "--isp-rows",
        type=isp_row_of,
        nargs="+",
        metavar="TENSORxWEIGHTxHIDDENxTOKENS[xRECOMPUTED]",
        help="(1x2x256x256 …)",
    )
    parser.add_argument("--rounds", type=int, default=7, help="steps of each that are measured (7)")
    parser.add_argument("--json", type=output_file, metavar="FILE")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, float32, {arguments.ranks} ranks of one thread over gloo")
    results: dict[str, Any] = {}

    def keep(figures: dict[str, Any]) -> None:
        results.update(figures)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(results, indent=1))

    for row in arguments.rows if arguments.only in (None, "tensor") else ():
        found = combine(run_on_ranks(measure, arguments.ranks, row, arguments.rounds, timeout=600))
        print("\n".join(show(row, found)), flush=True)
        keep({row.name: found})
    if arguments.only in (None, "pipeline"):
        for line, figures in pipeline.run(arguments.ranks, arguments.rounds, arguments.pipeline_rows):
            print(line, flush=True)
            keep(figures)
    if arguments.only in (None, "isp"):
        for line, figures in gathering.run(arguments.ranks, arguments.rounds, arguments.isp_rows):
            print(line, flush=True)
            keep(figures)


if __name__ == "__main__":
    main()
