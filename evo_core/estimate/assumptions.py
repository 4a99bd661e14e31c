"""What the model of a step's time assumes; all of it is printed beside what follows from it.

The time of a hop is that of NCCL's own model of a ring (`hwLat` of its src/graph/tuning.cc, protocol Simple).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from evo_core.estimate.chips import GB, Chip
from evo_core.parallel.degrees import Line


@dataclass(frozen=True)
class Assumptions:
    """The machines, and what of them is reached.

    Attributes:
        chip: of every rank.
        node: GPUs of a machine.
        network: bytes a second that a machine sends to others.
        of_link: share of a link's speed that collectives reach.
        of_memory: share of the memory's bandwidth that the optimizer and the sums of gradients reach.
        behind_products: share of what tensor ranks send that runs behind products of the backward pass.
        hop_inside: seconds until a message has gone from a rank to the next in a ring, over NVLink.
        hop_across: the same between machines.
        slowed: how much longer computing takes for each second that something is sent beside it.
    """

    chip: Chip
    node: int
    network: float
    of_link: float = 0.8
    of_memory: float = 0.8
    behind_products: float = 0.5
    hop_inside: float = 3.4e-6
    hop_across: float = 14e-6
    slowed: float = 0.1

    def across(self, line: Line) -> bool:
        """Whether the groups of an axis lie on several machines."""
        return line.size * line.stride > self.node

    def speed(self, line: Line) -> float:
        """Bytes a second that a rank sends along an axis, as a ring does.

        A ring goes from one machine to the next once, and shares the machine's network with the rings beside it: those
        of the machine's other ranks that are in other groups.
        """
        inside = self.chip.link * GB * self.of_link
        if not self.across(line):
            return inside
        rings = self.node / max(1, self.node // line.stride)
        return min(inside, self.network * self.of_link / rings)

    def delay(self, line: Line, collective: str) -> float:
        """Seconds that a message along an axis takes however short it is.

        All-reduces go through a tree of machines, all others round a ring.
        """
        machines = -(-line.size * line.stride // self.node) if self.across(line) else 1
        if collective == "send":
            return self.hop_inside if machines == 1 else self.hop_across
        if collective == "all_reduce":
            inside, across = min(line.size, self.node) - 1, 2 * math.log2(machines)
        else:
            across = min(line.size, machines) if machines > 1 else 0
            inside = line.size - 1 - across
        return max(inside, 0) * self.hop_inside + across * self.hop_across

    def lines(self, teraflops: float, dtype: str) -> Iterator[str]:
        """In words, each a sentence."""
        chip = self.chip
        yield (
            f"{chip.name}: {teraflops:g} teraflops at most in {dtype}, of which a block reaches {chip.efficiency:.0%} "
            "with all that is in it"
        )
        yield (
            f"a GPU sends {chip.link:g} GB/s inside a node of {self.node}, a node {self.network / GB:g} GB/s to "
            f"others; collectives reach {self.of_link:.0%} of it, in rings, with {self.hop_inside * 1e6:g} and "
            f"{self.hop_across * 1e6:g} us for each hop inside and between nodes"
        )
        yield (
            f"gradients are added up and values updated at {self.of_memory:.0%} of {chip.hbm:g} GB/s, and Muon "
            "multiplies as fast as a block"
        )
        yield f"{self.behind_products:.0%} of what tensor ranks send runs behind products of the backward pass"
        yield (
            "hidden behind computing: gradients behind the last micro-batch's backward pass (overlap_sync_grad), "
            "updated parameters behind the next forward pass (overlap_sync_param), what isp fetches (weight.overlap), "
            "what fsdp fetches and sums, and between stages with interleaved_overlap; all else is waited for"
        )
        yield f"computing takes {self.slowed:g} s longer for each second that is hidden behind it"
        yield "every sequence is one document of seq_len tokens; nobody waits for data, checkpoints or a slower rank"
