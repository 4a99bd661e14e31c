"""torch's own pipeline parallelism (torch.distributed.pipelining) over this repository's decoder.

Each of its stages is a decoder that holds a stage's blocks, so that what is computed is the same to the line;
schedules, messages and memory are torch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from evo_core.model.cutting import keep_stages
from evo_core.model.decoder import Decoder
from evo_core.model.stage import Stage
from evo_core.parallel.pipeline.placing import Placing


class TorchPipeline:
    """This rank's stages under a schedule of torch's.

    Args:
        models: a whole decoder for each stage of the rank, ascending; they are cut.
        placing: of the stages on the ranks of the default group.
        mode: as ours.
        count: micro-batches of a step.
        longest: tokens of the longest document.
    """

    def __init__(self, models: list[Decoder], placing: Placing, mode: str, count: int, longest: int) -> None:
        every = placing.cut(models[0].cfg.num_layers)
        numbers = placing.stages_of(dist.get_rank())
        self.modules = [
            _StageModule(model, every[number], longest) for model, number in zip(models, numbers, strict=True)
        ]
        stages = [
            PipelineStage(module, number, placing.stages, torch.device("cpu"))
            for module, number in zip(self.modules, numbers, strict=True)
        ]
        how: dict[str, Any] = {
            "n_microbatches": count,
            "loss_fn": lambda output, target: output / count,
            "scale_grads": False,
        }
        self.schedule: Any = _schedule(stages, mode, how)
        self.has_first, self.has_last = 0 in numbers, placing.stages - 1 in numbers

    def step(self, input_ids: Tensor, labels: Tensor, **more: Tensor) -> float:
        """The sum of the losses over their number, on the rank that has the last stage, else 0; gradients are left.

        Args:
            input_ids, labels: [count, T].
            more: ``positions`` and ``cu_seqlens``, of each micro-batch a row.
        """
        losses: list[Tensor] = []
        first = (input_ids,) if self.has_first else ()
        last: dict[str, Any] = {"target": labels, "losses": losses} if self.has_last else {}
        self.schedule.step(*first, return_outputs=False, labels=labels, **more, **last)
        return float(sum(loss.detach() for loss in losses))

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Of the rank's stages, under the names of the whole model."""
        return {name: p for module in self.modules for name, p in module.decoder.named_parameters()}


def _schedule(stages: list[PipelineStage], mode: str, how: dict[str, Any]) -> Any:
    if mode == "ZBV":
        return ScheduleZBVZeroBubble(stages, **how)  # type: ignore[arg-type]
    if mode == "ZBH1":
        return ScheduleInterleavedZeroBubble(stages, **how)  # type: ignore[arg-type]
    if len(stages) > 1:
        return ScheduleInterleaved1F1B(stages, **how)  # type: ignore[arg-type]
    return Schedule1F1B(stages[0], **how)


class _StageModule(nn.Module):
    """A stage as torch calls it: a tensor in, a tensor out, the rest by name and with a dimension of 1 before it."""

    def __init__(self, model: Decoder, stage: Stage, longest: int) -> None:
        super().__init__()
        keep_stages(model, [stage])
        self.decoder, self.stage, self.longest = model, stage, longest

    def forward(self, x: Tensor, *, positions: Tensor, cu_seqlens: Tensor, labels: Tensor) -> Tensor:
        x = x[0] if self.stage.has_embedding else x
        output = self.decoder(x, positions[0], cu_seqlens[0], labels=labels[0], max_seqlen=self.longest)
        result: Tensor = output.loss if self.stage.has_head else output.hidden
        return result
