"""The blocks of the optimizer: loss scaling, ZeRO, loss, Adam and the schedules."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from pydantic import ValidationInfo, field_validator, model_validator

from evo_core.config.fields import Block, block, execution, identity
from evo_core.config.types import (
    Float,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    StartBefore,
)


class Fp16ScaleConfig(Block):
    """Bounds and pace of the loss scale (for bfloat16 as well as float16)."""

    initial_scale: PositiveFloat = identity(2.0**16, "Loss scale at the first step.")
    min_scale: PositiveFloat | None = identity(None, "The scale never falls below this; None: 2^-24.")
    growth_interval: PositiveInt = identity(1000, "Good steps after which the scale grows.")


class GradScalerConfig(Block):
    """Dynamic loss scaling. With float32 and float64 the scale is 1 and stays so."""

    fp16: Fp16ScaleConfig = block(Fp16ScaleConfig, "Bounds and pace of the loss scale.")
    growth_factor: Float = identity(2.0, "The scale is multiplied by this when it grows (> 1).")
    backoff_factor: Float = identity(0.5, "The scale is multiplied by this after an overflow (between 0 and 1).")
    max_scale: PositiveFloat | None = identity(None, "The scale never rises above this; None: no bound.")
    hysteresis: NonNegativeInt = identity(2, "Overflows before the scale is lowered.")

    @field_validator("growth_factor")
    @classmethod
    def _grows(cls, value: float) -> float:
        if value <= 1:
            raise ValueError(f"must be greater than 1, not {value:g}")
        return value

    @field_validator("backoff_factor")
    @classmethod
    def _shrinks(cls, value: float) -> float:
        if not 0 < value < 1:
            raise ValueError(f"must be between 0 and 1, not {value:g}")
        return value


class HybridZeroOptimizerConfig(Block):
    """Gradient reduction, ZeRO's communication and clipping."""

    overlap_sync_grad: bool = execution(False, "Reduce gradients while the backward pass still runs.")
    overlap_sync_param: bool = execution(False, "Gather updated parameters during the next forward pass.")
    reduce_bucket_size: PositiveInt = execution(512 * 1024 * 1024, "Elements of a bucket of gradients.")
    clip_grad_norm: NonNegativeFloat = identity(0.0, "Global gradient norm to clip to; 0: no clipping.")
    use_split_tensor_optim: bool = execution(False, "Split each tensor over the ZeRO ranks, not the list of them.")
    all_gather_size: PositiveInt = execution(512 * 1024 * 1024, "Elements gathered at once after the update.")


class LossConfig(Block):
    """The training loss: cross-entropy, mean over the targets of a micro-batch, then over a step's micro-batches.

    As in InternEvo a micro-batch without a target counts as 0 in the second mean.
    """

    label_smoothing: Float = identity(0.0, "Share of the target's probability spread over the vocabulary.")
    moe_loss_coeff: NonNegativeFloat = identity(1.0, "Weight of the experts' balance loss.", introduced=1.0)

    @field_validator("label_smoothing", mode="before")
    @classmethod
    def _none_is_zero(cls, value: Any) -> Any:
        return 0.0 if value is None else value

    @field_validator("label_smoothing")
    @classmethod
    def _is_a_share(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError(f"must be at least 0 and below 1, not {value:g}")
        return value


_OF_MUON: dict[str, Any] = {"momentum": 0.95, "nesterov": True, "ns_steps": 5, "lr_ratio": 1.0}
"""Muon's keys and their defaults."""

_MOST_STEPS = 20
"""Far more than is needed: each raises a small singular value 3.4-fold, so that 12 bring one of a millionth near 1."""


class OptimizerConfig(Block):
    """What updates the weights. The other keys are muon's, and None with adamw; `adam` is for both."""

    name: Literal["adamw", "muon"] = identity(
        "adamw", "adamw; or muon for the matrices of the blocks, and adamw for the rest.", introduced="adamw"
    )
    momentum: Probability | None = identity(
        None, "Share that the gradients' running mean keeps; default: 0.95.", introduced=None
    )
    nesterov: bool | None = identity(None, "Mix the gradient in once more; default: true.", introduced=None)
    ns_steps: PositiveInt | None = identity(
        None, "Steps of the Newton-Schulz iteration, at most 20; default: 5.", introduced=None
    )
    lr_ratio: PositiveFloat | None = identity(
        None, "Learning rate of the matrices over adam.lr; default: 1.", introduced=None
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_muon(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("name") != "muon":
            return data
        return {**_OF_MUON, **{key: value for key, value in data.items() if value is not None}}

    @field_validator(*_OF_MUON)
    @classmethod
    def _with_muon_alone(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("name") == "adamw":
            raise ValueError("is for muon: leave it out, or write name: muon")
        return value

    @field_validator("momentum")
    @classmethod
    def _below_one(cls, value: float | None) -> float | None:
        if value is not None and value >= 1:
            raise ValueError(f"must be below 1, not {value:g}")
        return value

    @field_validator("ns_steps")
    @classmethod
    def _few(cls, value: int | None) -> int | None:
        if value is not None and value > _MOST_STEPS:
            raise ValueError(f"must be at most {_MOST_STEPS}, not {value}")
        return value


NoDecay = Literal["norm", "bias", "embedding"]


class AdamConfig(Block):
    """AdamW; weight decay applies to every parameter but what no_decay names."""

    lr: PositiveFloat = identity(1e-4, "Learning rate after the warm-up.")
    adam_beta1: Probability = identity(0.9, "Decay of the gradient's running mean.")
    adam_beta2: Probability = identity(0.95, "Decay of the squared gradient's running mean.")
    adam_beta2_c: NonNegativeFloat = identity(0.0, "Exponent of the beta2 schedule; 0: constant.")
    adam_eps: PositiveFloat = identity(1e-8, "Added to the denominator.")
    weight_decay: NonNegativeFloat = identity(0.01, "Decoupled weight decay.")
    no_decay: tuple[NoDecay, ...] = identity(
        (), "Parameters without it: those of norms, biases, the token embedding.", introduced=()
    )

    @field_validator("no_decay")
    @classmethod
    def _in_one_order(cls, value: tuple[NoDecay, ...]) -> tuple[NoDecay, ...]:
        twice = next((kind for kind in value if value.count(kind) > 1), None)
        if twice is not None:
            raise ValueError(f"names {twice} twice")
        return tuple(kind for kind in get_args(NoDecay) if kind in value)

    @field_validator("adam_beta1", "adam_beta2")
    @classmethod
    def _below_one(cls, value: float) -> float:
        if value >= 1:
            raise ValueError(f"must be below 1, not {value:g}")
        return value


class LrSchedulerConfig(Block):
    """Rate 0 for init_steps, a linear warm-up to adam.lr, then down to eta_min at total_steps, in the way of kind."""

    renamed: ClassVar[dict[str, str]] = {"warmup_steps": "state warmup_ratio, a share of total_steps"}

    total_steps: PositiveInt = identity(50000, "Updates until eta_min is reached; default: data.total_steps.")
    init_steps: NonNegativeInt = identity(0, "Updates with rate 0 before the warm-up.")
    warmup_ratio: Probability = identity(0.01, "Share of total_steps that is warm-up.")
    eta_min: NonNegativeFloat = identity(1e-5, "The rate at the end.")
    last_epoch: StartBefore = identity(-1, "Update to start the schedule after; -1: from its beginning.")
    kind: Literal["cosine", "wsd", "linear", "constant"] = identity(
        "cosine", "The way down; wsd stays at adam.lr first, constant for ever.", introduced="cosine"
    )
    decay_ratio: Probability = identity(
        0.1, "With wsd: share of total_steps, its last, that goes down.", introduced=0.1
    )
    decay_type: Literal["linear", "cosine", "sqrt"] = identity(
        "linear", "With wsd: the way down; sqrt is 1 - sqrt(t).", introduced="linear"
    )

    @property
    def warmup_steps(self) -> int:
        """Updates of the warm-up."""
        return int(self.total_steps * self.warmup_ratio)

    @property
    def decay_steps(self) -> int:
        """Updates of the way down of wsd."""
        return int(self.total_steps * self.decay_ratio)


class Beta2SchedulerConfig(Block):
    """beta2 = max(init_beta2, 1 - k**-c) at update k; constant for c = 0."""

    init_beta2: Probability = identity(0.95, "beta2 at the start; default: adam.adam_beta2.")
    c: Float = identity(0.0, "Exponent; 0 or less: constant. Default: adam.adam_beta2_c.")
    cur_iter: StartBefore = identity(-1, "k at the first update, after which it counts up; -1 is 0.")

    @field_validator("init_beta2")
    @classmethod
    def _below_one(cls, value: float) -> float:
        if value >= 1:
            raise ValueError(f"must be below 1, not {value:g}")
        return value
