"""The model of `evo estimate` against published runs: ``python -m benchmarks.estimate``.

Each row is a run of another system whose model, layout, batch and machines are known. Its tokens per GPU and second are
put beside what the model says of the same job. Three rows set the share of the peak that a chip's blocks reach
(`Chip.efficiency`), and are marked; all others are said from these. Nothing is run on a GPU here.

What another system sends is not what this one does: InternEvo and llm-foundry's mode PURE sum gradients in 16 bits,
where Evo sums them in 32. Their gradients are counted at half of Evo's bytes; the last column has what is said of Evo.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.results import Row as Result
from benchmarks.results import judged, output_file
from evo_core.config import TrainConfig
from evo_core.estimate.assumptions import Assumptions
from evo_core.estimate.chips import GB, chip
from evo_core.estimate.found import Found, find
from evo_core.estimate.rank_cost import quick_cost
from evo_core.estimate.step_time import Held, step_time

INTERNEVO = "InternEvo, doc/en/train_performance.md"
FOUNDRY = "llm-foundry, scripts/train/benchmarking/README.md"

_GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)


class Row(NamedTuple):
    """A published run.

    Attributes:
        name: its layout and batch.
        settings: the job's blocks.
        network: GB a second that a machine sends to others.
        tgs: tokens per GPU and second, as published.
        halves: gradients are summed in 16 bits there.
        sets: an assumption is set by it.
    """

    source: str
    name: str
    settings: dict[str, Any]
    gpus: int
    chip: str
    network: float
    tgs: float
    halves: bool = True
    sets: bool = False


class Said(NamedTuple):
    """What the model says of a row: of the system that ran it, and of Evo."""

    row: Row
    tgs: float
    of_evo: float

    @property
    def error(self) -> float:
        """Relative, of what was published."""
        return self.tgs / self.row.tgs - 1


def runs() -> Iterator[Row]:
    """All of them."""
    yield from _internevo()
    yield from _foundry()


def _internevo() -> Iterator[Row]:
    """InternLM 7B on A100 80 GB, four ports of 100 Gb/s a machine."""
    by_layout = {
        (1, 8): (4078, 3939, 3919, 3944, 3928, 3920, 3835, 3625),
        (1, -1): (4062, 3842, 3752, 3690, 3571, 3209, 2861, 2271),
        (2, -1): (3822, 3595, 3475, 3438, 3308, 3094, 2992, 2785),
        (2, 4): (3761, 3658, 3655, 3650, 3651, 3653, 3589, 3486),
    }
    for (tensor, zero1), published in by_layout.items():
        for gpus, tgs in zip(_GPUS, published, strict=True):
            name = f"tp {tensor}, zero1 {zero1}"
            sets = (tensor, zero1, gpus) == (1, 8, 8)
            yield _intern(name, gpus, tgs, tensor=tensor, zero1=zero1, micro_bsz=2 * tensor, sets=sets)
    again = (3314, 3268, 3323, 3217, 3260, 3215, 3199, 3163)
    for gpus, tgs in zip(_GPUS, again, strict=True):
        yield _intern("recompute, 8 x 1", gpus, tgs, micro_bsz=8, micro_num=1, checkpoint=1, sets=gpus == 8)
    few = ((512, 4, 1, 2963, 1), (1024, 2, 1, 2341, 1), (1024, 4, 1, 2796, 1), (512, 2, 2, 3084, 0))
    for gpus, micro_bsz, micro_num, tgs, again_ in (*few, (1024, 2, 1, 2346, 0), (1024, 2, 2, 2817, 0)):
        name = f"{'recompute, ' if again_ else ''}{micro_bsz} x {micro_num}"
        yield _intern(name, gpus, tgs, micro_bsz=micro_bsz, micro_num=micro_num, checkpoint=again_)


def _intern(
    name: str,
    gpus: int,
    tgs: float,
    *,
    tensor: int = 1,
    zero1: int = 8,
    micro_bsz: int = 2,
    micro_num: int = 4,
    checkpoint: int = 0,
    sets: bool = False,
) -> Row:
    settings = {
        "model_type": "INTERNLM",
        "model": {
            "num_layers": 32,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "vocab_size": 103168,
            "checkpoint": checkpoint,
        },
        "data": {"seq_len": 2048, "micro_bsz": micro_bsz, "micro_num": micro_num},
        "hybrid_zero_optimizer": {"overlap_sync_grad": True},
        "parallel": {"zero1": {"size": zero1}, "tensor": {"size": tensor}},
    }
    return Row(INTERNEVO, name, settings, gpus, "a100", 50, tgs, sets=sets)


_MPT = {"3b": (32, 2560, 20), "7b": (32, 4096, 32), "13b": (40, 5120, 40), "30b": (48, 7168, 56), "70b": (80, 8192, 64)}
"""Layers, width and heads of the models of llm-foundry."""


def _foundry() -> Iterator[Row]:
    """MPT by torch's FSDP over all GPUs: 200 Gb/s for each A100; of H100 the table says nothing, taken are 400."""
    for size, seq_len, gpus, chip_, micro_bsz, micro_num, again, tgs, pure in (
        ("7b", 2048, 8, "h100", 6, 1, 0, 10643, 0),
        ("7b", 4096, 8, "h100", 16, 2, 1, 8611, 0),
        ("7b", 8192, 8, "h100", 8, 2, 1, 6935, 0),
        ("3b", 2048, 16, "h100", 10, 3, 0, 24142, 0),
        ("3b", 2048, 64, "h100", 6, 3, 0, 22525, 0),
        ("13b", 2048, 8, "h100", 2, 1, 0, 4792, 0),
        ("13b", 2048, 64, "h100", 2, 1, 0, 4800, 0),
        ("13b", 4096, 8, "h100", 10, 3, 1, 4717, 0),
        ("30b", 2048, 32, "h100", 14, 3, 1, 2308, 0),
        ("70b", 2048, 64, "h100", 8, 4, 1, 1039, 0),
        ("3b", 2048, 8, "a100", 10, 2, 0, 10811, 0),
        ("7b", 2048, 8, "a100", 6, 2, 0, 4641, 0),
        ("7b", 4096, 8, "a100", 16, 2, 1, 3684, 0),
        ("7b", 8192, 8, "a100", 8, 2, 1, 3206, 0),
        ("13b", 2048, 8, "a100", 2, 3, 0, 2262, 0),
        ("30b", 2048, 8, "a100", 3, 21, 1, 916, 0),
        ("70b", 2048, 64, "a100", 8, 4, 1, 410, 1),
        ("7b", 2048, 128, "a100-40gb", 18, 1, 1, 3623, 1),
        ("13b", 2048, 128, "a100-40gb", 16, 1, 1, 1972, 1),
        ("30b", 2048, 128, "a100-40gb", 6, 1, 1, 865, 1),
    ):
        layers, hidden, heads = _MPT[size]
        settings = {
            "model_type": "INTERNLM",
            "model": {
                "num_layers": layers,
                "hidden_size": hidden,
                "num_attention_heads": heads,
                "vocab_size": 50368,
                "mlp_ratio": 4,
                "use_swiglu": False,
                "no_bias": True,
                "tie_word_embeddings": True,
                "checkpoint": again,
            },
            "data": {"seq_len": seq_len, "micro_bsz": micro_bsz, "micro_num": micro_num},
            "parallel": {"zero1": {"size": -1, "fsdp": True}},
        }
        name = f"{size}, {seq_len}, {micro_bsz} x {micro_num}{', recompute' if again else ''}"
        network = 400.0 if chip_ == "h100" else 200.0
        sets = (size, seq_len, chip_) == ("7b", 2048, "h100")
        yield Row(FOUNDRY, name, settings, gpus, chip_, network, tgs, halves=bool(pure), sets=sets)


def say(row: Row) -> Said:
    """What the model says of a row."""
    cfg = TrainConfig.model_validate(row.settings)
    assumed = Assumptions(chip(row.chip), 8, row.network * GB)
    found = find(cfg, row.gpus, assumed, quick_cost)
    sent = {key: size // 2 if row.halves and _is_gradients(key) else size for key, size in found.sent.items()}
    return Said(row, step_time(cfg, found.degrees, sent, _held(found), assumed).tgs, found.time.tgs)


def _held(found: Found) -> Held:
    most = found.most
    return Held(most.parameters, most.gradients, most.master + most.moments)


def _is_gradients(key: tuple[str, str]) -> bool:
    collective, axis = key
    return axis.endswith(("zero", "replica", "data")) and collective in ("all_reduce", "reduce_scatter")


def rows(found: dict[str, Any]) -> Iterator[Result]:
    """Of what is written: how far the model is from what was published."""
    note = (
        f"{found['rows']} runs that set nothing, {found['within 10 %']} within 10 %, {found['within 20 %']} within 20 %"
    )
    yield judged("estimate", "median error", 100 * found["median"], "%", note=note)
    yield judged("estimate", "largest error", 100 * found["largest"], "%")


def main() -> None:
    """Print every row, then how many are within 10 and 20 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the errors there too")
    arguments = parser.parse_args()
    said, source = [say(row) for row in runs()], ""
    for each in said:
        row = each.row
        if row.source != source:
            source = row.source
            print(f"\n{source}\n{'run':32}{'GPUs':>5}  {'chip':9}", end="")
            print(f"{'published':>10}{'model':>8}{'error':>8}{'of Evo':>8}")
        mark = " sets the chip's efficiency" if row.sets else ""
        print(
            f"{row.name:32}{row.gpus:5}  {row.chip:9}{row.tgs:10.0f}{each.tgs:8.0f}{each.error:+8.1%}"
            f"{each.of_evo:8.0f}{mark}"
        )
    errors = [abs(each.error) for each in said if not each.row.sets]
    within = [sum(error <= bound for error in errors) for bound in (0.1, 0.2)]
    print(
        f"\nof {len(errors)} rows that set nothing {within[0]} are within 10 %, {within[1]} within 20 %; "
        f"the median error is {statistics.median(errors):.1%}, the largest {max(errors):.1%}"
    )
    if arguments.json is not None:
        found = {"rows": len(errors), "within 10 %": within[0], "within 20 %": within[1]}
        found |= {"median": statistics.median(errors), "largest": max(errors)}
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
