"""What ranks send each other in a step, by what it is for: behind what it hides, and in how many messages it goes."""

from __future__ import annotations

from dataclasses import dataclass

from evo_core.config import TrainConfig
from evo_core.estimate.matrices import linear_weights
from evo_core.parallel.degrees import Degrees

_STATES = ("zero", "replica", "data")
"""Ends of the names of axes along which gradients are summed and updated parameters gathered."""

_OF_ONE = ("reduce", "broadcast")
"""Collectives of one of Muon's matrices each."""

_LINEARS = 5
"""Linear layers of a block that isp fetches one by one."""


@dataclass(frozen=True)
class Messages:
    """What goes along an axis by a collective.

    Attributes:
        name: in words.
        number: of messages in a step.
        behind: seconds of computing that it can hide behind.
        share: of it that can.
        always: it is under way in every micro-batch; else in the last or the first one.
    """

    name: str
    number: float
    behind: float = 0.0
    share: float = 1.0
    always: bool = True


@dataclass(frozen=True)
class Behind:
    """What a job sends, beside what it computes.

    Attributes:
        computing: seconds of a step, of which the backward passes are two thirds.
        behind_products: share of what tensor ranks send that runs behind products.
    """

    cfg: TrainConfig
    degrees: Degrees
    computing: float
    behind_products: float

    @property
    def _count(self) -> int:
        return self.cfg.micro_num(self.degrees.data)

    @property
    def _blocks(self) -> float:
        """Passes of blocks of a step on a rank, forward or backward."""
        return self._count * self.cfg.model.num_layers / self.degrees.pipeline

    def messages(self, collective: str, axis: str, size: int) -> Messages:
        """Of an axis and a collective, by which `size` bytes are sent a step."""
        parallel = self.cfg.parallel
        if axis == "tensor" and parallel.tensor.mode == "isp":
            return Messages("attention's exchange", 2 * self._blocks)
        if axis == "tensor":
            often = 4 if parallel.tensor.mode != "fsp" else 6
            backward = self.computing * 2 / 3
            return Messages("activations between tensor ranks", often * self._blocks, backward, self.behind_products)
        if axis == "weight":
            number = _LINEARS * self._blocks * (2 if collective == "all_gather" else 1)
            return Messages("isp's weights", number, self._part(collective) if parallel.weight.overlap else 0.0)
        if axis == "pipeline":
            number = 2 * self._count * self.cfg.model.num_chunks
            hides = parallel.pipeline.interleaved_overlap
            return Messages("activations between stages", number, self.computing if hides else 0.0)
        if axis == "expert":
            return Messages("tokens to experts", 4 * self._blocks)
        if not axis.endswith(_STATES):
            return Messages("sums over all ranks", 1)
        return self._of_states(collective, axis, size)

    def _of_states(self, collective: str, axis: str, size: int) -> Messages:
        zero, gathers = self.cfg.hybrid_zero_optimizer, collective in ("all_gather", "broadcast")
        if self.degrees.shards:
            number = self._blocks * (2 if gathers else 1)
            return Messages("fsdp's parameters" if gathers else "gradients", number, self._part(collective))
        elements = zero.all_gather_size if gathers else zero.reduce_bucket_size
        if collective in _OF_ONE:
            elements = self.cfg.model.hidden_size**2
        number, of_one = 1 + size / (4 * elements), self.computing / self._count
        if gathers:
            return Messages("updated parameters", number, of_one / 3 if zero.overlap_sync_param else 0.0, always=False)
        behind = of_one * 2 / 3 if zero.overlap_sync_grad else 0.0
        return Messages("gradients", number, behind, self._early(collective, axis), always=False)

    def _early(self, collective: str, axis: str) -> float:
        """Share of the gradients that are sent before the backward pass is over.

        Muon's messages are of as many whole matrices of a shape as there are ranks, and go when the last layer of them
        is behind; matrices that do not go round go in the end.
        """
        if self.cfg.optimizer.name != "muon":
            return 1.0
        if collective in _OF_ONE:
            return 0.0
        degrees = self.degrees
        ranks = degrees.expert_zero if axis.startswith("expert_") else max(degrees.zero, degrees.zero1)
        layers, early, every = self.cfg.model.num_layers / degrees.pipeline, 0.0, 0
        for (rows, columns), count in linear_weights(self.cfg.model, fused=False).items():
            early += count * rows * columns * max(0.0, 1 - ranks / (count * layers))
            every += count * rows * columns
        return early / every

    def _part(self, collective: str) -> float:
        """Weights are fetched in both passes, their gradients made in the second."""
        return self.computing if collective == "all_gather" else self.computing * 2 / 3
