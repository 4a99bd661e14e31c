"""What gathering weights costs, beside torch's own: the third part of ``python -m benchmarks.parallel``.

One Llama is trained by isp on ranks of this machine, with `overlap` off, on, and on with `memory_pool`; where
each rank has a sequence of its own (tensor 1) also by torch's `fully_shard` over the same ranks, of the same decoder,
block by block and with prefetch. Loss and norm of the gradients are compared with one process's, and a difference ends
the benchmark. Of each micro-batch are printed, medians over rounds in which all take turns, of the worst rank:

- ``for weights``: milliseconds in which layers stood still until their weights were there. With overlap they are to be
  at most `BAR` of those without;
- ``waiting``: the same for all messages, attention's and the gradients' among them;
- ``step``: milliseconds of forward, backward, clipping and AdamW. Messages of ranks on one machine are copies by the
  processors that compute, so that it is no measure of isp: what there is to hide is not there to be saved;
- ``sent``: bytes that a rank sends, counted and by formula (traffic.py), which must be equal;
- ``held``: bytes of parameters, and of gathered weights at most, on the first rank;
- ``grows by``: bytes by which a rank's memory grows at most in passes of few tokens: what is gathered, and gradients.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from benchmarks import fsdp_peer
from benchmarks.peer_models import Shape, evo
from benchmarks.results import Row as Result
from benchmarks.results import judged
from benchmarks.traffic import sent_by_isp
from evo_core.model.decoder import Decoder
from evo_core.optim.groups import groups_of
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.collectives import all_reduce, counting
from evo_core.parallel.mesh import Mesh
from evo_core.parallel.weight.blocks import gathering_of
from evo_core.parallel.weight.gathering import Gathering, Record
from evo_core.placement import Placed, placements_of
from tests.memory import growing
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

LAYERS, VOCABULARY, HEAD = 6, 1024, 64
TOLERANCE = 1e-5
#: At most so much of the time in which layers wait for their weights is left with overlap.
BAR = 0.7
OFF, ON, POOL, PEER = "overlap off", "overlap on", "on, memory_pool", "fully_shard"
WAYS = {OFF: {}, ON: {"overlap": True}, POOL: {"overlap": True, "memory_pool": True}}
CLOCKS = ("seconds", "waited", "for_weights")
FEW = 16
"""Tokens of a pass in which memory is what weights and gradients take."""
M_MMAP_THRESHOLD = -3
"""As glibc's malloc.h has it."""


class Row(NamedTuple):
    """One comparison.

    Attributes:
        tensor, weight: ranks that share the sequence, and each weight.
        tokens: of each rank's part of a micro-batch.
    """

    tensor: int
    weight: int
    hidden: int = 256
    tokens: int = 256
    checkpoint: float = 0.0

    @property
    def shape(self) -> Shape:
        """Of the model: heads of 64."""
        return Shape(LAYERS, self.hidden, self.hidden // HEAD, VOCABULARY)

    @property
    def name(self) -> str:
        """As it is printed."""
        again = ", every block recomputed" if self.checkpoint else ""
        return f"isp, tensor {self.tensor}, weight {self.weight}, {LAYERS} x {self.hidden}, {self.tokens} tokens{again}"


def rows_of(ranks: int) -> list[Row]:
    """Weights over all ranks, with a sequence for each, and one for all."""
    return [Row(tensor, ranks, checkpoint=again) for tensor in (1, ranks) for again in (0.0, 1.0)]


class MicroBatch:
    """One random document for the ranks that share a sequence; the n-th of them has another one."""

    def __init__(self, number: int, tokens: int) -> None:
        ids = torch.randint(VOCABULARY, (tokens + 1,), generator=torch.Generator().manual_seed(number))
        self._inputs = ids[:-1], torch.arange(tokens), torch.tensor([0, tokens], dtype=torch.int32)
        self._labels = ids[1:]

    def loss(self, model: Decoder) -> torch.Tensor:
        """Of a decoder."""
        loss = model(*self._inputs, labels=self._labels, max_seqlen=len(self._labels)).loss
        assert loss is not None
        return loss


# --- contestants, on each rank


def whole_model(row: Row) -> Decoder:
    """The same on every rank."""
    model = evo(row.shape)
    model.cfg = model.cfg.model_copy(update={"checkpoint": row.checkpoint})
    return model


def isp(row: Row, mesh: Mesh, way: dict[str, bool]) -> Any:
    """This repository's, with the weights of the whole model."""
    whole = whole_model(row)
    model = build_parallel(whole.cfg, mesh, "cpu", **way)
    weights, placements = dict(whole.named_parameters()), placements_of(model)
    for name, parameter in model.named_parameters():
        Placed(parameter.data, placements[name]).fill(weights[name].data)
    return model


def models_of(row: Row, mesh: Mesh) -> dict[str, Callable[[], Any]]:
    """What makes each contestant's; torch's where each rank has a sequence of its own."""
    makers: dict[str, Callable[[], Any]] = {name: partial(isp, row, mesh, way) for name, way in WAYS.items()}
    if row.tensor == 1:
        makers[PEER] = lambda: fsdp_peer.sharded(whole_model(row), mesh.devices["zero"])
    return makers


Step = Callable[[], tuple[float, float]]
"""Takes a whole step, in which nothing is learnt: the loss of all ranks, and the norm of the gradients."""


def ours(model: Any, mesh: Mesh, batch: MicroBatch) -> Step:
    """By this repository's optimizer."""
    optimizer = Zero1AdamW(groups_of(model, mesh), mesh.world, clip_grad_norm=1.0)

    def step() -> tuple[float, float]:
        optimizer.begin()
        loss = batch.loss(model)
        optimizer.backward(loss, last=True)
        norm, total = optimizer.reduce(loss.detach().double().view(1))
        optimizer.step(0.0, 0.95)
        return float(total) / mesh.world.size, norm

    return step


def torchs(model: Any, mesh: Mesh, batch: MicroBatch) -> Step:
    """By torch's."""
    update = fsdp_peer.optimizer(model)

    def step() -> tuple[float, float]:
        model.zero_grad()
        loss = batch.loss(model)
        loss.backward()
        total = loss.detach().double().view(1)
        all_reduce(total, mesh.world.group).wait()
        return float(total) / mesh.world.size, update()

    return step


def one_process(row: Row, ranks: int) -> tuple[float, float]:
    """Loss and norm of the gradients of the whole model, over all that the ranks see."""
    model, count = whole_model(row), ranks // row.tensor
    total = 0.0
    for number in range(count):
        loss = MicroBatch(number, row.tensor * row.tokens).loss(model) / count
        loss.backward()
        total += float(loss.detach())
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return total, float(torch.nn.utils.get_total_norm(gradients))


def mesh_and_batch(row: Row, tokens: int) -> tuple[Mesh, MicroBatch]:
    """Of this rank."""
    mesh = mesh_of(tensor={"size": row.tensor, "mode": "isp"}, weight=row.weight)
    return mesh, MicroBatch(mesh.data.rank, row.tensor * tokens)


# --- one rank


def measure(row: Row, rounds: int) -> dict[str, dict[str, Any]]:
    """Figures of each contestant on this rank."""
    mesh, batch = mesh_and_batch(row, row.tokens)
    loss, norm = one_process(row, mesh.world.size)
    found: dict[str, dict[str, Any]] = {}
    contestants: dict[str, tuple[Step, Gathering | None]] = {}
    for name, make in models_of(row, mesh).items():
        model = make()
        found[name] = {clock: [] for clock in CLOCKS} | {"held": fsdp_peer.held(model)}
        if name in WAYS:
            found[name]["sent"] = sent(model, batch)
        step = (ours if name in WAYS else torchs)(model, mesh, batch)
        for _ in range(2):  # the first learns in which order weights are used
            of_step = step()
        found[name]["deviation"] = max(abs(of_step[0] - loss) / loss, abs(of_step[1] - norm) / norm)
        contestants[name] = step, gathering_of(model)
    for _ in range(rounds):
        for name, contestant in contestants.items():
            for figures in (None, found[name]):  # the first step only finds its memory again, as training would
                take_step(*contestant, figures)
    formula = sent_by_isp(whole_model(row).cfg, row.tensor, row.weight, row.tensor * row.tokens, element=4)
    for name in WAYS:
        gathering = contestants[name][1]
        assert gathering is not None  # weights are shared in every row
        found[name]["gathered"] = gathering.buffers.peak
        found[name]["parts"] = {part: dict(sizes) for part, sizes in formula.items()}
        found[name]["formula"] = dict(sum(formula.values(), Counter()))
    return found


def sent(model: Any, batch: MicroBatch) -> dict[str, int]:
    """Bytes of a forward and backward pass, by collective, without the sums of a step."""
    with counting() as traffic:
        batch.loss(model).backward()
    model.zero_grad()
    return dict(traffic.bytes)


def take_step(step: Step, gathering: Gathering | None, figures: dict[str, Any] | None) -> None:
    """Take one step, all ranks at once, and note how long it took and what of it was waiting."""
    dist.barrier()
    with counting() as traffic, gathering.recording() if gathering else nullcontext(Record()) as record:
        began = time.perf_counter()
        step()
        seconds = time.perf_counter() - began
    if figures is not None:
        for clock, value in zip(CLOCKS, (seconds, traffic.waited, record.waited), strict=True):
            figures[clock].append(value)


def memory(row: Row, name: str) -> int:
    """Bytes by which this rank's memory grows at most in two passes of few tokens, gradients included."""
    # What is freed goes back to the system at once: else a heap full of holes is most of what is measured.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    mesh, batch = mesh_and_batch(row, FEW)

    def passes(model: Any) -> None:
        for _ in range(2):
            model.zero_grad()
            batch.loss(model).backward()

    # What a process takes once, whatever the model's size.
    passes(models_of(row._replace(hidden=HEAD * row.tensor), mesh)[name]())
    model = models_of(row, mesh)[name]()
    ctypes.CDLL(None).malloc_trim(0)  # what making the model has left free is not to be found again
    with growing() as grown:
        passes(model)
    return grown.peak


# --- all ranks


def combine(ranks: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """One set of figures: of times in each round and of deviations the worst rank's.

    Raises:
        SystemExit: loss or norm is another than one process's, or what was counted than the formula.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, first in ranks[0].items():
        figures = dict(first)
        figures["deviation"] = max(rank[name]["deviation"] for rank in ranks)
        if not figures["deviation"] <= TOLERANCE:
            raise SystemExit(f"{name}: differs by {figures['deviation']:.1e} from one process: void")
        for number, rank in enumerate(ranks):
            if rank[name].get("sent") != rank[name].get("formula"):
                raise SystemExit(f"{name}: rank {number} sent {rank[name]['sent']}, by formula {rank[name]['formula']}")
        for clock in CLOCKS:
            figures[clock] = [max(times) for times in zip(*(rank[name][clock] for rank in ranks), strict=True)]
        found[name] = figures
    return found


def show(found: dict[str, dict[str, Any]], grown: dict[str, list[int]]) -> Iterator[str]:
    """The lines of a row, behind its name."""
    yield f"  loss and norm of the gradients agree to {max(each['deviation'] for each in found.values()):.1e}"
    titles = ("for weights, ms", "waiting, ms", "step, ms", "MB held", "gathered", "grows by")
    yield "  {:16} {:>16} {:>12} {:>9} {:>8} {:>9} {:>9}".format("", *titles)
    for name, each in found.items():
        step, waited, for_weights = (1e3 * statistics.median(each[clock]) for clock in CLOCKS)
        of_ours = [f"{for_weights:.1f}", f"{waited:.1f}", f"{each['gathered'] / 1e6:.2f}"] if name in WAYS else [""] * 3
        line = f"  {name:16} {of_ours[0]:>16} {of_ours[1]:>12} {step:9.1f} {each['held'] / 1e6:8.2f} {of_ours[2]:>9}"
        yield f"{line} {max(grown[name]) / 1e6:9.1f}"
    for part, sizes in found[OFF]["parts"].items():
        if sizes:
            listed = ", ".join(f"{collective} {size:,}" for collective, size in sorted(sizes.items()))
            yield f"  sent for {part}, in bytes, as by formula: {listed}"
    without = statistics.median(found[OFF]["for_weights"])
    left = {name: statistics.median(found[name]["for_weights"]) / without for name in (ON, POOL)}
    line = ", ".join(f"{name} {share:.2f}" for name, share in left.items())
    yield f"  waiting for weights, of that without overlap: {line}; bar {BAR}: {_verdict(max(left.values()))}"
    if PEER in found:
        ratios = (theirs / mine for theirs, mine in zip(found[PEER]["seconds"], found[ON]["seconds"], strict=True))
        yield f"  fully_shard takes {statistics.median(ratios):.2f}x as long as isp with overlap"


def results(name: str, figures: Any) -> Iterator[Result]:
    """The rows of one of the figures that `run` gives."""
    if not isinstance(figures, dict) or "grown" not in figures:
        return
    found = figures["found"]
    without = statistics.median(found[OFF]["for_weights"])
    for way in (ON, POOL):
        left = statistics.median(found[way]["for_weights"]) / without
        row = f"{name}: {way}, waiting for weights"
        yield judged("parallel", row, left, "of that without overlap", bar=BAR, at_most=True)
    if PEER in found:
        value, other = (1e3 * statistics.median(found[who]["seconds"]) for who in (ON, PEER))
        more: dict[str, Any] = {"peer": PEER, "peer_value": other, "less_is_better": True}
        yield judged("parallel", f"{name}: isp with overlap", value, "ms a step", **more)


def _verdict(share: float) -> str:
    return "reached" if share <= BAR else "MISSED"


def run(ranks: int, rounds: int, rows: Iterable[Row] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is to be printed, row by row, each with the figures behind it.

    Args:
        ranks: of the world.
        rounds: steps of each that are measured.
        rows: None takes those of so many ranks.
    """
    for row in rows if rows is not None else rows_of(ranks):
        found = combine(run_on_ranks(measure, ranks, row, rounds, timeout=600))
        grown = {name: run_on_ranks(memory, ranks, row, name, timeout=600) for name in found}
        yield "\n".join([row.name, *show(found, grown)]), {row.name: {"found": found, "grown": grown}}
