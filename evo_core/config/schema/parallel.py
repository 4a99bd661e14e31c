"""The ``parallel`` block: how the ranks share the work. None of it changes the trained weights."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from pydantic import field_validator, model_validator

from evo_core.config.fields import Block, block, execution
from evo_core.config.types import Int, PositiveInt


class _Sized(Block):
    """A group of ranks; a bare number is its size."""

    @model_validator(mode="before")
    @classmethod
    def _number_is_size(cls, data: Any) -> Any:
        return data if data is None or isinstance(data, dict | Block) else {"size": data}


class Zero1Config(_Sized):
    """Optimizer states are split over groups of ranks that hold the same part of the model."""

    size: Int = execution(-1, "Ranks of such a group; 0 or less: all there are. 1: no splitting.")
    fsdp: bool = execution(False, "Split parameters and gradients too (torch's fully sharded data parallel).")


class TensorConfig(_Sized):
    """Each layer is split over a group of ranks."""

    size: PositiveInt = execution(1, "Ranks of such a group; with isp, that share a sequence.")
    mode: Literal["mtp", "msp", "fsp", "isp"] = execution(
        "mtp",
        "mtp: Megatron's tensor parallel. msp: with sequence parallel. fsp: msp that gathers again in the "
        "backward pass. isp: the sequence is split, and so are weights (weight.size).",
    )


class PipelineConfig(_Sized):
    """The layers are dealt out over a group of ranks."""

    size: PositiveInt = execution(1, "Ranks of such a group.")
    interleaved_overlap: bool = execution(
        False, "Overlap communication with computation where model.num_chunks is above 1."
    )
    mode: Literal["1F1B", "ZBH1", "ZBV"] = execution(
        "1F1B", "The schedule: 1F1B (with model.num_chunks above 1 interleaved), or zero-bubble, ZBH1 or ZBV."
    )

    @field_validator("mode", mode="before")
    @classmethod
    def _in_capitals(cls, given: Any) -> Any:
        """InternEvo's own files have them small (1f1b, zbh1, zbv)."""
        modes = get_args(cls.model_fields["mode"].annotation)
        return given.upper() if isinstance(given, str) and given.upper() in modes else given


class WeightConfig(_Sized):
    """With tensor.mode isp: each weight of the blocks is split over a group of ranks and gathered when it is used."""

    size: PositiveInt = execution(1, "Ranks of such a group; it need not be tensor.size.")
    overlap: bool = execution(
        False, "Gather the next block's weights while one computes: two blocks' are whole at a time."
    )
    memory_pool: bool = execution(False, "With overlap, make the buffers of gathered weights once, and keep them.")


class ExpertConfig(_Sized):
    """The experts of a mixture are dealt out over groups of data-parallel ranks, and tokens sent to them."""

    size: Int = execution(
        -1, "Ranks of such a group, each with as many experts; 0 or less: all that divide. 1: every rank has all."
    )


class ParallelConfig(Block):
    """Data-parallel ranks = all ranks / pipeline size / tensor size."""

    renamed: ClassVar[dict[str, str]] = {
        "sequence_parallel": "it follows from tensor.mode: leave it out",
        "data": "the data-parallel size follows from the others",
    }

    zero1: Zero1Config = block(Zero1Config, "Splitting of optimizer states.")
    tensor: TensorConfig = block(TensorConfig, "Splitting of each layer.")
    pipeline: PipelineConfig = block(PipelineConfig, "Splitting by layers.")
    weight: WeightConfig = block(WeightConfig, "Splitting of weights alone.")
    expert: ExpertConfig = block(ExpertConfig, "Splitting of the experts of a mixture.")
