"""What a training step costs, beside transformers and litgpt: ``python -m benchmarks.train_step``.

One set of weights and one set of documents goes into this repository's decoder, transformers' Llama and litgpt's GPT.
Measured is forward and backward, the optimizer apart, eager against eager and compiled against compiled, in float32 and
bfloat16, at two widths:

- ``dense``: documents of one length, so that nobody pads;
- ``uneven``: documents of log-normal lengths, packed here and padded to the longest by the others (on the right and
  without a mask, which is the fastest way and changes no loss). Only tokens of documents count;
- ``compiled``: dense, by `compile_blocks` and by torch.compile of the whole model;
- ``matrix products``: every product of the dense step by `torch.mm` alone, on tensors that lie ready. The share is the
  time of these over the time of our whole step.

Each contestant lives in a process of its own and all take turns, step by step, so that load on the machine meets all
alike. Figures are medians, of the process's CPU time unless they say otherwise; losses and gradient norms are compared.

Peak memory is the most resident while steps run over what was resident before the model was made: weights, gradients
and activations. Ours begins as `evo train` does, which keeps freed memory with the process.

Peers: ``pip install transformers``; litgpt as peer_models.py says. A peer that is missing is named and left out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peer_models import Shape, evo, litgpt_gpt, transformers_llama
from benchmarks.results import Row as Result
from benchmarks.results import judged, output_file
from evo_core.model.dtypes import product_dtype
from evo_core.train.host_memory import keep_freed_memory

SHAPES = {"4x256": Shape(4, 256, 4, 4096), "2x1024": Shape(2, 1024, 16, 4096)}
SEQ_LEN = 512
FEW_DOCUMENTS = 2
DENSE_BARS = {("4x256", "float32"): 1.1, ("2x1024", "float32"): 1.05, ("4x256", "bfloat16"): 1.15,
              ("2x1024", "bfloat16"): 1.15}  # fmt: skip
COMPILED_BAR, UNEVEN_BAR, SHARE_BAR = 1.0, 3.0, 0.80
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
PEERS = ("transformers", "litgpt")
PRODUCTS = "torch.mm"
QUICK = ("--shapes", "4x256", "--dtypes", "float32", "--rounds", "1", "--documents", "2", "2", "--no-compile")

Step = Callable[[], Tensor]


class Row(NamedTuple):
    """One comparison."""

    shape: str
    dtype: str
    kind: str
    lengths: tuple[int, ...]
    compiled: bool

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"{self.shape} {self.dtype} {self.kind}{' compiled' if self.compiled else ''}"

    @property
    def bar(self) -> float:
        """How many times as fast as the best peer this repository has to be."""
        if self.kind == "uneven":
            return UNEVEN_BAR
        return COMPILED_BAR if self.compiled else DENSE_BARS[self.shape, self.dtype]


def uneven_lengths(documents: int) -> tuple[int, ...]:
    """Quantiles of a log-normal distribution with median 130 and deviation 0.8, cut at SEQ_LEN, in mixed order."""
    normal = statistics.NormalDist()
    lengths = [130 * math.exp(0.8 * normal.inv_cdf((i + 0.5) / documents)) for i in range(documents)]
    cut = [min(SEQ_LEN, max(2, round(length))) for length in lengths]
    return tuple(cut[i * 7 % documents] if math.gcd(7, documents) == 1 else cut[i] for i in range(documents))


def documents_of(row: Row) -> list[Tensor]:
    """Random ids, one more than a document has targets."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(SHAPES[row.shape].vocab, (n + 1,), generator=generator) for n in row.lengths]


# --- contestants: each returns a step, which computes the loss and leaves gradients


def make_evo(row: Row) -> tuple[torch.nn.Module, Step]:
    """This repository's decoder, the documents in one pack."""
    model = evo(SHAPES[row.shape], getattr(torch, row.dtype))
    if row.compiled:
        from evo_core.model import compile_blocks

        compile_blocks(model)
    documents = documents_of(row)
    input_ids, labels = torch.cat([d[:-1] for d in documents]), torch.cat([d[1:] for d in documents])
    positions = torch.cat([torch.arange(n) for n in row.lengths])
    cu_seqlens = torch.tensor([0, *row.lengths]).cumsum(0).to(torch.int32)
    longest = max(row.lengths)

    def step() -> Tensor:
        loss = model(input_ids, positions, cu_seqlens, labels=labels, max_seqlen=longest).loss
        assert loss is not None
        return loss

    return model, step


def make_transformers(row: Row) -> tuple[torch.nn.Module, Step]:
    """transformers' Llama with its default attention (SDPA), the documents padded on the right."""
    model = transformers_llama(evo(SHAPES[row.shape], getattr(torch, row.dtype)))
    called = torch.compile(model) if row.compiled else model
    input_ids, labels = _padded(row)

    def step() -> Tensor:
        logits = called(input_ids=input_ids, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)

    return model, step


def make_litgpt(row: Row) -> tuple[torch.nn.Module, Step]:
    """litgpt's GPT with its own chunked loss, the documents padded on the right."""
    from litgpt.utils import chunked_cross_entropy  # type: ignore[import-not-found]

    model = litgpt_gpt(evo(SHAPES[row.shape], getattr(torch, row.dtype)), SEQ_LEN)
    input_ids, labels = _padded(row)
    model.max_seq_length = input_ids.shape[1]  # type: ignore[assignment]
    called = torch.compile(model) if row.compiled else model

    def step() -> Tensor:
        return chunked_cross_entropy(called(input_ids).float(), labels)

    return model, step


def make_products(row: Row) -> tuple[None, Step]:
    """Forward and both backward products of every matrix, alone."""
    shape, dtype, tokens = SHAPES[row.shape], getattr(torch, row.dtype), sum(row.lengths)
    width = evo(Shape(1, shape.hidden, shape.heads, 8)).cfg.mlp_hidden_size
    h = shape.hidden
    counts = {(h, h): 4 * shape.layers, (h, width): 2 * shape.layers, (width, h): shape.layers, (h, shape.vocab): 1}
    x = {n: torch.randn(tokens, n, dtype=dtype) for n in {n for pair in counts for n in pair}}
    out = {n: torch.empty(tokens, n, dtype=dtype) for n in x}
    weights = {pair: torch.randn(pair[1], pair[0], dtype=dtype) for pair in counts}
    gradients = {pair: torch.empty_like(weight) for pair, weight in weights.items()}

    def step() -> Tensor:
        for pair, count in counts.items():
            inner, outer = pair
            for _ in range(count):
                torch.mm(x[inner], weights[pair].t(), out=out[outer])
                torch.mm(x[outer], weights[pair], out=out[inner])
                torch.mm(x[outer].t(), x[inner], out=gradients[pair])
        return torch.zeros(())

    return None, step


MAKERS = {"evo": make_evo, "transformers": make_transformers, "litgpt": make_litgpt, PRODUCTS: make_products}


def _padded(row: Row) -> tuple[Tensor, Tensor]:
    documents, longest = documents_of(row), max(row.lengths)
    input_ids = torch.zeros(len(documents), longest, dtype=torch.int64)
    labels = torch.full_like(input_ids, -100)
    for i, document in enumerate(documents):
        input_ids[i, : len(document) - 1], labels[i, : len(document) - 1] = document[:-1], document[1:]
    return input_ids, labels


# --- one contestant's process


def _memory(field: str) -> int:
    """A size from /proc/self/status, bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def work(name: str, row: Row, threads: int, pipe: Connection) -> None:
    """Build, warm up, say loss and gradient norm; then a step for every message, and the peak memory at the end."""
    try:
        torch.set_num_threads(threads)
        if name == "evo":
            keep_freed_memory()
        if name in PEERS:
            importlib.import_module(name)
        before = _memory("VmRSS")
        model, step = MAKERS[name](row)

        def run() -> float:
            if model is None:
                return float(step())
            model.zero_grad(set_to_none=True)
            loss = step()
            loss.backward()
            return float(loss.detach())

        loss, norm = run(), 0.0
        if model is not None:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            del gradients
        if row.compiled:
            run()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        pipe.send({"loss": loss, "norm": norm})
        while pipe.recv() == "step":
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            pipe.send({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall})
        pipe.send({"peak": _memory("VmHWM") - before})
    except BaseException:
        pipe.send({"error": traceback.format_exc()})


class Contestant:
    """A process that takes a step when told to."""

    def __init__(self, name: str, row: Row, threads: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(name, row, threads, other), daemon=True)
        self._process.start()
        other.close()
        self.first = self._answer()
        self.steps: list[dict[str, float]] = []

    def step(self) -> None:
        """Take one step."""
        self._pipe.send("step")
        self.steps.append(self._answer())

    def finish(self) -> int:
        """Peak memory, bytes."""
        self._pipe.send("finish")
        peak = int(self._answer()["peak"])
        self._process.join()
        return peak

    def _answer(self) -> dict[str, Any]:
        answer = self._pipe.recv()
        if "error" in answer:
            raise RuntimeError(f"{self.name} failed:\n{answer['error']}")
        return answer


# --- a row


def measure(row: Row, names: Sequence[str], rounds: int, threads: int) -> dict[str, Any]:
    """All contestants in turns; figures of each."""
    contestants = []
    for name in names:
        print(f"  {row.name}: {name} is getting ready", flush=True)
        contestants.append(Contestant(name, row, threads))
    for _ in range(rounds):
        for contestant in contestants:
            contestant.step()
    tokens = sum(row.lengths)
    figures: dict[str, Any] = {}
    for contestant in contestants:
        cpu, wall = (statistics.median(step[clock] for step in contestant.steps) for clock in ("cpu", "wall"))
        figures[contestant.name] = contestant.first | {
            "cpu_seconds": cpu,
            "tokens_per_cpu_second": tokens / cpu,
            "tokens_per_second": tokens / wall,
            "peak_megabytes": contestant.finish() / 1e6,
        }
    return figures | {"_check": agreement(figures, row.dtype), "_tokens": tokens}


def agreement(figures: dict[str, Any], dtype: str) -> str:
    """Whether losses and gradient norms are ours; a difference beyond the tolerance ends the benchmark."""
    ours, worst = figures["evo"], 0.0
    for name, other in figures.items():
        if name in PEERS:
            for quantity in ("loss", "norm"):
                worst = max(worst, abs(other[quantity] - ours[quantity]) / abs(ours[quantity]))
    if worst > TOLERANCE[dtype]:
        raise SystemExit(f"losses or gradients differ by {worst:.1e}: {figures}")
    return f"losses and gradient norms agree to {worst:.1e}"


def show(row: Row, figures: dict[str, Any]) -> Iterator[str]:
    """The lines of a row."""
    tokens = sum(row.lengths)
    padding = 1 - tokens / (len(row.lengths) * max(row.lengths))
    padded = f", {padding:.0%} of a padded batch is padding" if padding else ""
    yield f"{row.name}: {len(row.lengths)} documents, {tokens} tokens{padded}; {figures['_check']}"
    ours = figures["evo"]["tokens_per_cpu_second"]
    for name, one in figures.items():
        if name.startswith("_") or name == PRODUCTS:
            continue
        ratio = "" if name == "evo" else f"   evo is {ours / one['tokens_per_cpu_second']:.2f}x"
        yield (
            f"  {name:13} {one['tokens_per_cpu_second']:9.0f} tokens/CPU-s {one['tokens_per_second']:9.0f} tokens/s "
            f"{one['peak_megabytes']:8.0f} MB{ratio}"
        )
    peers = [figures[name]["tokens_per_cpu_second"] for name in PEERS if name in figures]
    if peers:
        ratio, bar = ours / max(peers), row.bar
        yield f"  against the best peer {ratio:.2f}x, bar {bar:g}x: {'reached' if ratio >= bar else 'MISSED'}"
    if PRODUCTS in figures:
        share = figures[PRODUCTS]["cpu_seconds"] / figures["evo"]["cpu_seconds"]
        bar = SHARE_BAR if SHAPES[row.shape].hidden >= 1024 and tokens >= 8000 else None
        verdict = "" if bar is None else f", bar {bar:.0%}: {'reached' if share >= bar else 'MISSED'}"
        yield f"  matrix products alone take {share:.0%} of the step's time{verdict}"


def rows(results: dict[str, dict[str, Any]]) -> Iterator[Result]:
    """Of what is written: Evo beside each peer, the bar being for the best of them, and the share of products."""
    for name, figures in results.items():
        speed = {who: one["tokens_per_cpu_second"] for who, one in figures.items() if not who.startswith("_")}
        ours, peers = speed["evo"], {who: theirs for who, theirs in speed.items() if who in PEERS}
        shape, dtype, kind, *compiled = name.split()
        bar = Row(shape, dtype, kind, (), bool(compiled)).bar
        for who, theirs in peers.items():
            of_best = bar if theirs == max(peers.values()) else None
            more = {"peer": who, "peer_value": theirs, "bar": of_best, "note": figures["_check"]}
            yield judged("train_step", name, ours, "tokens/CPU-s", **more)
        if PRODUCTS in figures:
            share = figures[PRODUCTS]["cpu_seconds"] / figures["evo"]["cpu_seconds"]
            wide = SHAPES[shape].hidden >= 1024 and figures["_tokens"] >= 8000
            bar_ = SHARE_BAR if wide else None
            yield judged("train_step", f"{name}: matrix products", share, "of the step", bar=bar_)


def plan(arguments: argparse.Namespace) -> list[Row]:
    """The rows that are asked for."""
    rows = []
    for shape in arguments.shapes:
        for dtype in arguments.dtypes:
            many = _documents(arguments, shape, getattr(torch, dtype))
            for compiled in [False] if arguments.no_compile else [False, True]:
                rows.append(Row(shape, dtype, "dense", (SEQ_LEN,) * many, compiled))
                if not compiled:
                    rows.append(Row(shape, dtype, "uneven", uneven_lengths(max(8, 2 * many)), compiled))
    return rows


def _documents(arguments: argparse.Namespace, shape: str, dtype: torch.dtype) -> int:
    """Of a dense row: as many in bfloat16 as in float32, but few where a CPU without its products takes long."""
    is_slow = product_dtype(dtype, "cpu") != dtype
    return FEW_DOCUMENTS if is_slow else arguments.documents[list(SHAPES).index(shape)]


def main() -> None:
    """Measure and print; with --json write the figures too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=list(TOLERANCE), choices=list(TOLERANCE))
    parser.add_argument("--threads", type=int, default=1, help="of each contestant (1)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each contestant that are measured (5)")
    parser.add_argument("--documents", type=int, nargs=2, default=(8, 16), help="of 512 tokens, for each width (8 16)")
    parser.add_argument("--no-compile", action="store_true", help="eager rows alone")
    parser.add_argument("--json", type=output_file, metavar="FILE")
    arguments = parser.parse_args()
    peers = []
    for name in PEERS:
        try:
            importlib.import_module(name)
            peers.append(name)
        except ImportError as error:
            where = "pip install transformers" if name == "transformers" else "see benchmarks/peer_models.py"
            print(f"{name} is missing ({error}) and left out; {where}")
    print(f"torch {torch.__version__}, {platform.machine()}, threads {arguments.threads}, rounds {arguments.rounds}")
    results = {}
    for row in plan(arguments):
        products = [PRODUCTS] if row.kind == "dense" and not row.compiled else []
        results[row.name] = measure(row, ["evo", *peers, *products], arguments.rounds, arguments.threads)
        print("\n".join(show(row, results[row.name])), flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
