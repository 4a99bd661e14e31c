"""What a pipeline costs, beside torch's own: the second half of ``python -m benchmarks.parallel``.

One Llama is trained by one process, and over the stages of a pipeline by each schedule of Evo and by the same schedule
of torch.distributed.pipelining, whose stages are the same blocks with the same weights. The losses of a step and its
gradients are compared with one process's, and a difference ends the benchmark. Printed are

- of each schedule the share of time that ranks wait for others, and the micro-batches that are alive on the first and
  the last rank, in times of what a rank computes of one: from the timetable, beside the formulas of
  docs/parallelism.md, which must agree;
- milliseconds of the forward and backward passes of all micro-batches of a step, of the slowest rank, and of all
  ranks' processors together: medians over rounds in which all take turns. What torch's schedule and one process take
  is a ratio, the median of those in each round;
- bytes that the first rank sends, counted and by formula (traffic.py), which must be equal on every rank;
- by how much a rank's resident memory grows in steps of few and of many micro-batches.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.peer_models import Shape, evo
from benchmarks.pipelining_peer import TorchPipeline
from benchmarks.results import Row as Result
from benchmarks.results import judged
from benchmarks.traffic import handed_on
from evo_core.model.decoder import Decoder, ModelOutput
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.collectives import counting
from evo_core.parallel.passes import MicroBatch
from evo_core.parallel.pipeline.orders import one_forward_one_backward, zero_bubble
from evo_core.parallel.pipeline.placing import Placing
from evo_core.parallel.pipeline.stages import Pipeline
from evo_core.parallel.pipeline.timetable import Timetable, timetable
from tests.memory import growing
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

LAYERS, VOCABULARY, HEAD = 8, 1024, 64
TOLERANCE = {"loss": 1e-5, "gradients": 1e-4}
ONE = "one process"
CLOCKS = ("seconds", "cpu_seconds", "waited")


class Schedule(NamedTuple):
    """How passes are ordered."""

    name: str
    mode: str
    chunks: int = 1

    def placing(self, ranks: int) -> Placing:
        """Of its stages."""
        return Placing(ranks, self.chunks, is_v=self.mode == "ZBV")

    def timetable(self, ranks: int, count: int) -> Timetable:
        """Of a step."""
        order, placing = one_forward_one_backward if self.mode == "1F1B" else zero_bubble, self.placing(ranks)
        return timetable(placing, order(placing, count))

    def bubble(self, ranks: int, count: int) -> float:
        """Its formula: of the time of a pass forward, which the two parts of a backward pass take too."""
        thirds = {"1F1B": 3 * (ranks - 1) / self.chunks, "ZBH1": ranks - 1, "ZBV": (ranks - 1) / 2}[self.mode]
        return thirds / (3 * count + thirds)

    def alive(self, ranks: int, rank: int) -> float:
        """Its formula: micro-batches of which a rank keeps what it computed, each as a whole."""
        if self.mode != "1F1B":
            return ranks
        if self.chunks == 1:
            return ranks - rank
        return (2 * (ranks - 1 - rank) + (self.chunks - 1) * ranks + 1) / self.chunks


SCHEDULES = (
    Schedule("1F1B", "1F1B"),
    Schedule("interleaved, 2 chunks", "1F1B", 2),
    Schedule("ZBH1", "ZBH1"),
    Schedule("ZBV", "ZBV", 2),
)


class Row(NamedTuple):
    """One comparison."""

    hidden: int
    tokens: int
    micro_num: int
    checkpoint: float = 0.0

    @property
    def shape(self) -> Shape:
        """Of the model: heads of 64."""
        return Shape(LAYERS, self.hidden, max(1, self.hidden // HEAD), VOCABULARY)

    @property
    def name(self) -> str:
        """As it is printed."""
        again = ", every block recomputed" if self.checkpoint else ""
        return f"{LAYERS} layers x {self.hidden}, {self.micro_num} micro-batches of {self.tokens} tokens{again}"


#: A step of little work, in which what a pass costs by itself is seen, and one of more.
ROWS = [
    *(Row(64, 128, micro_num) for micro_num in (4, 8, 16)),
    *(Row(256, 256, micro_num) for micro_num in (4, 8, 16)),
    Row(256, 256, 8, checkpoint=1.0),
]
MEMORY_ROWS = (Row(256, 256, 8), Row(256, 256, 32))


class Step:
    """Random documents, of each micro-batch a quarter of the tokens in the first."""

    def __init__(self, row: Row) -> None:
        self.count, lengths = row.micro_num, (row.tokens // 4, row.tokens - row.tokens // 4)
        ids = torch.randint(VOCABULARY, (row.micro_num, row.tokens + 1), generator=torch.Generator().manual_seed(1))
        self.input_ids, self.labels = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        self.positions = torch.cat([torch.arange(length) for length in lengths])
        self.cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        self.longest = max(lengths)

    def micro_batch(self, number: int) -> MicroBatch:
        """As our passes ask for it."""
        more = {"labels": self.labels[number], "max_seqlen": self.longest}
        return MicroBatch(self.input_ids[number], self.positions, self.cu_seqlens, more)


# --- contestants, on each rank


class Contestant(NamedTuple):
    """A model over which steps go.

    Attributes:
        step: its forward and backward passes; the loss where there is one, else 0. Gradients are left.
        parameters: of this rank.
    """

    step: Callable[[], float]
    parameters: dict[str, torch.nn.Parameter]

    def begin(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None


class LeftAlone:
    """In place of an optimizer: gradients stay where the passes leave them, as torch's do."""

    def scaled(self, loss: Tensor) -> Tensor:
        """See `Optimizer`."""
        return loss

    def final(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """See `Optimizer`."""

    def collect(self) -> None:
        """See `Optimizer`."""


def whole_model(row: Row) -> Decoder:
    """The same on every rank."""
    model = evo(row.shape)
    model.cfg = model.cfg.model_copy(update={"checkpoint": row.checkpoint})
    return model


def one_process(row: Row, step: Step) -> Contestant:
    """The whole model, one micro-batch after another."""
    model = whole_model(row)

    def run() -> float:
        total = 0.0
        for number in range(step.count):
            batch = step.micro_batch(number)
            loss = model(batch.input_ids, batch.positions, batch.cu_seqlens, **batch.more).loss / step.count
            loss.backward()
            total += float(loss.detach())
        return total

    return Contestant(run, dict(model.named_parameters()))


def ours(row: Row, step: Step, schedule: Schedule) -> Contestant:
    """This repository's."""
    whole, mesh, placing = whole_model(row), mesh_of(pipeline=dist.get_world_size()), schedule.placing(_ranks())
    model: Any = build_parallel(whole.cfg, mesh, "cpu", placing=placing)
    weights, parameters = dict(whole.named_parameters()), dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.data.copy_(weights[name].data)
    pipeline = Pipeline(model, mesh.pipeline, placing, mode=schedule.mode)
    optimizer: Any = LeftAlone()

    def run() -> float:
        losses: list[Tensor] = []

        def objective(number: int, output: ModelOutput) -> Tensor:
            assert output.loss is not None
            losses.append(output.loss.detach() / step.count)
            return output.loss / step.count

        pipeline.forward_backward(step.count, step.micro_batch, objective, optimizer)
        return float(sum(losses))

    return Contestant(run, parameters)


def torchs(row: Row, step: Step, schedule: Schedule) -> Contestant:
    """torch's."""
    models = [whole_model(row) for _ in range(schedule.chunks)]
    peer = TorchPipeline(models, schedule.placing(_ranks()), schedule.mode, step.count, step.longest)
    of_each = {
        "positions": step.positions.expand(step.count, -1),
        "cu_seqlens": step.cu_seqlens.expand(step.count, -1),
    }
    return Contestant(lambda: peer.step(step.input_ids, step.labels, **of_each), peer.named_parameters())


def _ranks() -> int:
    return dist.get_world_size()


# --- one rank


def measure(row: Row, rounds: int) -> dict[str, dict[str, Any]]:
    """Figures of each contestant on this rank."""
    step = Step(row)
    alone = one_process(row, step)
    loss = alone.step()
    gradients = {name: parameter.grad.clone() for name, parameter in alone.parameters.items()}  # type: ignore[union-attr]
    contestants = {ONE: alone}
    for schedule in SCHEDULES:
        contestants[schedule.name] = ours(row, step, schedule)
        contestants[f"torch's {schedule.name}"] = torchs(row, step, schedule)
    found: dict[str, dict[str, Any]] = {name: {clock: [] for clock in CLOCKS} for name in contestants}
    for name, each in contestants.items():
        each.step()  # finds what it compiles and caches
        each.begin()
        found[name]["loss"] = each.step() - loss  # of the ranks that have none, minus the loss: summed over ranks
        found[name]["gradients"] = max(
            float((parameter.grad - gradients[of]).abs().max() / gradients[of].abs().max())  # type: ignore[operator]
            for of, parameter in each.parameters.items()
        )
    for schedule in SCHEDULES:
        with counting() as traffic:
            contestants[schedule.name].step()
        found[schedule.name]["sent"] = traffic.bytes["send"]
        found[schedule.name]["formula"] = handed_on(
            whole_model(row).cfg, schedule.placing(_ranks()), dist.get_rank(), row.micro_num, row.tokens, element=4
        )
    for _ in range(rounds):
        for name, each in contestants.items():
            take_step(each, found[name], alone=name == ONE)
    return found


def take_step(each: Contestant, figures: dict[str, Any], *, alone: bool) -> None:
    """Take one step, all ranks at once or the first alone, and note how long it took."""
    each.begin()
    dist.barrier()
    if alone and dist.get_rank():
        return
    with counting() as traffic:
        began, used = time.perf_counter(), time.process_time()
        each.step()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - used
    for clock, value in zip(CLOCKS, (seconds, cpu_seconds, traffic.waited), strict=True):
        figures[clock].append(value)


def memory(row: Row, make: Callable[[Row, Step, Schedule], Contestant], schedule: Schedule) -> int:
    """Bytes by which this rank's memory grows at most in two steps."""
    step = Step(row)
    each = make(row, step, schedule)
    ctypes.CDLL(None).malloc_trim(0)  # what making the model has left free is not to be found again
    with growing() as grown:
        for _ in range(2):
            each.begin()
            each.step()
    return grown.peak


# --- all ranks


def combine(ranks: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """One set of figures: of times and deviations the worst rank's.

    Raises:
        SystemExit: a loss or gradient is another than one process's, or what was counted than the formula.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, first in ranks[0].items():
        figures = dict(first)
        # Each rank has said its loss (0 without a last stage) minus the whole one's: one of them is right.
        figures["loss"] = min(abs(rank[name]["loss"]) for rank in ranks)
        figures["gradients"] = max(rank[name]["gradients"] for rank in ranks)
        for quantity, limit in TOLERANCE.items():
            if not figures[quantity] <= limit:
                raise SystemExit(f"{name}: {quantity} differ by {figures[quantity]:.1e} from one process's: void")
        for number, rank in enumerate(ranks):
            if rank[name].get("sent") != rank[name].get("formula"):
                raise SystemExit(f"{name}: rank {number} sent {rank[name]['sent']}, by formula {rank[name]['formula']}")
        for clock in CLOCKS:
            of_all = sum if clock == "cpu_seconds" else max
            rounds = zip(*(rank[name][clock] for rank in ranks if rank[name][clock]), strict=True)
            figures[clock] = [of_all(times) for times in rounds]
        found[name] = figures
    return found


def show(row: Row, found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The lines of a row."""
    worst = {quantity: max(figures[quantity] for figures in found.values()) for quantity in TOLERANCE}
    yield f"{row.name}: losses agree to {worst['loss']:.1e}, gradients to {worst['gradients']:.1e}"
    yield f"  {'':25} {'ms':>8} {'CPU-ms':>8} {'waiting':>8} {'MB sent':>8}   times as long, ms (CPU-ms)"
    for name in (ONE, *(schedule.name for schedule in SCHEDULES)):
        mine = found[name]
        clocks = [1e3 * statistics.median(mine[clock]) for clock in CLOCKS]
        line = f"  {name:25} {clocks[0]:8.1f} {clocks[1]:8.1f}"
        if name != ONE:
            line += f" {clocks[2] / clocks[0]:8.0%} {mine['sent'] / 1e6:8.3f}   "
            line += ", ".join(
                f"{other} {_ratio(found[peer], mine, 'seconds'):.2f} ({_ratio(found[peer], mine, 'cpu_seconds'):.2f})"
                for other, peer in (("torch's", f"torch's {name}"), (ONE, ONE))
            )
        yield line


def _ratio(peer: dict[str, Any], mine: dict[str, Any], clock: str) -> float:
    return statistics.median(theirs / ours for theirs, ours in zip(peer[clock], mine[clock], strict=True))


def results(name: str, found: Any) -> Iterator[Result]:
    """The rows of one of the figures that `run` gives, if it is a step's."""
    for schedule in SCHEDULES:
        peer = f"torch's {schedule.name}"
        if isinstance(found, dict) and schedule.name in found and peer in found:
            mine, theirs = found[schedule.name], found[peer]
            value, other = (1e3 * statistics.median(each["seconds"]) for each in (mine, theirs))
            more: dict[str, Any] = {"peer": peer, "peer_value": other, "ratio": _ratio(theirs, mine, "seconds")}
            yield judged("parallel", f"{name}: {schedule.name}", value, "ms a step", **more)


def timetables(sizes: Iterable[int] = (2, 4, 8)) -> Iterator[str]:
    """Bubble and live micro-batches of each schedule, counted, which are those of the formulas.

    Raises:
        SystemExit: they are not.
    """
    yield f"  {'':25} {'ranks':>6} {'micro-batches':>14} {'bubble':>8} {'alive on first, last rank':>27}"
    for schedule in SCHEDULES:
        for ranks in sizes:
            count = 4 * ranks
            made = schedule.timetable(ranks, count)
            alive = [made.alive(rank) / schedule.chunks for rank in (0, ranks - 1)]
            formula = [schedule.alive(ranks, rank) for rank in (0, ranks - 1)]
            if abs(made.bubble - schedule.bubble(ranks, count)) > 1e-9 or alive != formula:
                raise SystemExit(
                    f"{schedule.name} on {ranks} ranks: bubble {made.bubble:.4f}, alive {alive}; by formula "
                    f"{schedule.bubble(ranks, count):.4f}, {formula}"
                )
            yield (
                f"  {schedule.name:25} {ranks:6} {count:14} {made.bubble:8.1%} {f'{alive[0]:.1f}, {alive[1]:.1f}':>27}"
            )


def run(ranks: int, rounds: int, rows: Iterable[Row] = ROWS) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is to be printed, bit by bit, each with the figures behind it.

    Args:
        ranks: of the pipeline.
        rounds: steps of each that are measured.
    """
    yield "\n".join(["schedules of pipelines, as by formula", *timetables()]), {}
    for row in rows:
        found = combine(run_on_ranks(measure, ranks, row, rounds, timeout=600))
        yield "\n".join(show(row, found)), {row.name: found}
    few, many = MEMORY_ROWS
    yield f"{few.name}, and {many.micro_num} of them: MB by which the first and the last rank grow", {}
    for schedule in SCHEDULES:
        line, figures = f"  {schedule.name:25}", {}
        for name, make in (("ours", ours), ("torch's", torchs)):
            grown = [run_on_ranks(memory, ranks, row, make, schedule, timeout=600) for row in MEMORY_ROWS]
            line += f"  {name} " + ", then ".join(f"{each[0] / 1e6:.0f} and {each[-1] / 1e6:.0f}" for each in grown)
            figures[name] = grown
        yield line, {f"memory of {schedule.name}": figures}
