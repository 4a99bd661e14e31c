"""How micro-batches go through a model: one object for training, evaluation and parity, with a pipeline or without.

Whoever calls it says what a micro-batch is and what is to become of an output, and need not know which rank computes
which part of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from evo_core.model.decoder import Decoder
from evo_core.parallel.pipeline.stages import Pipeline

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.model import ModelOutput
    from evo_core.optim.protocol import Optimizer
    from evo_core.parallel.mesh import Mesh


@dataclass(frozen=True)
class MicroBatch:
    """What a model is given of one packed sequence, on its device.

    Attributes:
        input_ids, positions, cu_seqlens: as `Decoder.forward` takes them.
        more: its further arguments, by name.
    """

    input_ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    more: dict[str, Any] = field(default_factory=dict)


class Passes(Protocol):
    """The passes of micro-batches through a model, of which this rank may hold a part.

    The ranks that hold it together call each method with the same micro-batches; those of a step are of one length.
    """

    @property
    def has_output(self) -> bool:
        """Whether outputs are computed on this rank: on those of the last stage."""

    @property
    def at_once(self) -> int:
        """How many micro-batches to hand to `forward` where there are more of them: enough to keep all stages busy."""

    def forward_backward(
        self,
        count: int,
        micro_batch: Callable[[int], MicroBatch],
        objective: Callable[[int, ModelOutput], Tensor],
        optimizer: Optimizer,
    ) -> None:
        """Make the gradients of a step.

        Args:
            count: of the step's micro-batches on this rank.
            micro_batch: gives the i-th.
            objective: of its output what is to be lowered, a scalar; called on ranks with outputs, in ascending order.
            optimizer: has begun the step, and takes the gradients.
        """

    def forward(
        self, count: int, micro_batch: Callable[[int], MicroBatch], take: Callable[[int, ModelOutput], None]
    ) -> None:
        """Compute outputs without gradients.

        Args:
            take: is handed each output, on ranks with outputs, in ascending order.
        """


class WholeModel:
    """The passes of a model that each rank, or the ranks of its tensor axis, have all layers of."""

    has_output = True
    at_once = 1

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def forward_backward(
        self,
        count: int,
        micro_batch: Callable[[int], MicroBatch],
        objective: Callable[[int, ModelOutput], Tensor],
        optimizer: Optimizer,
    ) -> None:
        """See `Passes`."""
        for number in range(count):
            loss = objective(number, self._output(micro_batch(number)))
            optimizer.backward(loss, last=number == count - 1)

    @torch.no_grad()
    def forward(
        self, count: int, micro_batch: Callable[[int], MicroBatch], take: Callable[[int, ModelOutput], None]
    ) -> None:
        """See `Passes`."""
        for number in range(count):
            take(number, self._output(micro_batch(number)))

    def _output(self, batch: MicroBatch) -> ModelOutput:
        output: ModelOutput = self.model(batch.input_ids, batch.positions, batch.cu_seqlens, **batch.more)
        return output


def passes_of(model: nn.Module, mesh: Mesh, cfg: TrainConfig | None = None) -> Passes:
    """The passes of a model as it lies on a mesh.

    Args:
        model: this rank's part of it, from `evo_core.parallel.apply`.
        cfg: the job, which says the schedule; None takes the simplest, for passes without gradients.
    """
    if mesh.pipeline.size == 1 or not isinstance(model, Decoder):
        return WholeModel(model)
    return Pipeline.of(model, mesh, cfg)
