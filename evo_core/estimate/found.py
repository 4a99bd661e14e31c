"""A layout whose ranks' costs are known: what these ranks hold and send, and the time that follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evo_core.config import TrainConfig
from evo_core.estimate.assumptions import Assumptions
from evo_core.estimate.costs import RankCost
from evo_core.estimate.step_time import Held, StepTime, step_time
from evo_core.parallel.degrees import Degrees

Cost = Callable[[TrainConfig, int, int], RankCost]
"""From a job, a number of ranks and one of them to what that one holds and sends."""

PARTS = ("parameters", "gathered", "gradients", "master", "moments", "buffers", "activations")
"""What a rank's memory is for, as `RankCost` names it."""


@dataclass(frozen=True)
class Found:
    """What is known of a job at a layout.

    Attributes:
        cfg: with the layout.
        ranks: that were looked at: the first of the first, of a middle and of the last stage.
        most: of these the one that needs most memory.
        sent: bytes a step by collective and axis, of the one that sends most.
        time: of a step, modelled.
    """

    cfg: TrainConfig
    degrees: Degrees
    ranks: tuple[int, ...]
    most: RankCost
    sent: dict[tuple[str, str], int]
    time: StepTime

    @property
    def memory(self) -> int:
        """Bytes of the rank that needs most."""
        return self.most.total

    @property
    def name(self) -> str:
        """The sizes that are not 1, in a line."""
        return name_of(self.cfg, self.degrees)


def find(cfg: TrainConfig, gpus: int, assumed: Assumptions, cost: Cost) -> Found:
    """What ranks of a legal layout come to: the first of the first stage, of a middle one and of the last.

    Args:
        cost: of one rank.
    """
    degrees = cfg.degrees(gpus)
    stages = sorted({0, degrees.pipeline // 2, degrees.pipeline - 1})
    ranks = tuple(stage * degrees.data * degrees.tensor for stage in stages)
    costs = [cost(cfg, gpus, rank) for rank in ranks]
    most = max(costs, key=lambda each: each.total)
    sent: Counter[tuple[str, str]] = Counter()
    for each in costs:
        sent |= Counter(each.sent)
    operations = max(each.operations for each in costs)
    held = Held(most.parameters, most.gradients, most.master + most.moments, operations)
    return Found(cfg, degrees, ranks, most, dict(+sent), step_time(cfg, degrees, dict(+sent), held, assumed))


def name_of(cfg: TrainConfig, degrees: Degrees) -> str:
    """A layout in a line: ``msp 8, pipeline 4 x 2 chunks, zero1 8, recompute 0.5``."""
    parallel, model = cfg.parallel, cfg.model
    words = []
    if parallel.tensor.mode == "isp" and degrees.gathers_weights | (degrees.tensor > 1):
        words.append(f"isp {degrees.tensor} weight {degrees.weight}")
    elif degrees.tensor > 1:
        words.append(f"{parallel.tensor.mode} {degrees.tensor}")
    if degrees.pipeline > 1:
        chunks: Any = f" x {model.num_chunks} chunks" if model.num_chunks > 1 else ""
        mode = "" if parallel.pipeline.mode == "1F1B" else f" {parallel.pipeline.mode}"
        words.append(f"pipeline {degrees.pipeline}{mode}{chunks}")
    words.append(f"{'fsdp' if degrees.shards else 'zero1'} {degrees.zero1}")
    if degrees.expert > 1:
        words.append(f"experts over {degrees.expert}")
    words.append(f"recompute {float(model.checkpoint):g}")
    return ", ".join(words)
