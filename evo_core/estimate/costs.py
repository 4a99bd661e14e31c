"""What one rank holds and sends, as figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RankCost:
    """Bytes that one rank holds, and those that it sends in a step.

    Attributes:
        rank: of the world.
        parameters: weights at rest, with the buffers of modules.
        gathered: most bytes of weights that are fetched for use at a time beyond these (isp, fsdp).
        gradients: of the parameters.
        master: master values that are not the parameters themselves.
        moments: of Adam both, of Muon's matrices one.
        buffers: messages' rooms (ZeRO's gather buffer, isp's pool of buffers).
        activations: most bytes that autograd keeps for the backward pass at a time in a step; weights and the batch
            left out.
        sent: in one step by (collective, axis), as `parallel.collectives.Traffic` counts.
        operations: of the products of Muon's update on this rank (not bytes).
    """

    rank: int
    parameters: int
    gathered: int
    gradients: int
    master: int
    moments: int
    buffers: int
    activations: int
    sent: Mapping[tuple[str, str], int]
    operations: float = 0.0

    @property
    def total(self) -> int:
        """Bytes of all that is held; not in it: what operations need while they run, the slack of the allocator, and
        the libraries' own."""
        held = self.parameters + self.gathered + self.gradients + self.master + self.moments + self.buffers
        return held + self.activations
