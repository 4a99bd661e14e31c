"""What one rank of a layout holds and sends, by running the training code of that rank without memory and without the
other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evo_core.config import TrainConfig


@dataclass(frozen=True)
class RankCost:
    """Bytes that one rank holds, and those that it sends in a step.

    Attributes:
        rank: of the world.
        parameters: weights at rest, with the buffers of modules.
        gathered: most bytes of weights that are fetched for use at a time beyond these (isp, fsdp).
        gradients: of the parameters.
        master: master values that are not the parameters themselves.
        moments: of Adam, both.
        buffers: messages' rooms (ZeRO's gather buffer, isp's pool of buffers).
        activations: most bytes that autograd keeps for the backward pass at a time in a step; weights and the batch
            left out.
        sent: in one step by (collective, axis), as `parallel.collectives.Traffic` counts.
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

    @property
    def total(self) -> int:
        """Bytes of all that is held; not in it: what operations need while they run, the slack of the allocator, and
        the libraries' own."""
        held = self.parameters + self.gathered + self.gradients + self.master + self.moments + self.buffers
        return held + self.activations


def rank_cost(cfg: TrainConfig, world_size: int, rank: int) -> RankCost:
    """The cost of a rank with all its layers."""
    raise NotImplementedError


def quick_cost(cfg: TrainConfig, world_size: int, rank: int) -> RankCost:
    """The same from a few layers of each stage, for a search over many layouts."""
    raise NotImplementedError
