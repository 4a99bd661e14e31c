"""The record of one step, trained on or skipped: log line, curve, tensorboard and progress all say what it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from evo_core.train.checkpointing import Asked

LOG_FIELDS = (
    "tflops",
    "step",
    "loss",
    "tgs (tokens/gpu/second)",
    "lr",
    "loss_scale",
    "grad_norm",
    "micro_num",
    "num_consumed_tokens",
    "inf_nan_skip_batches",
    "num_samples_in_batch",
    "largest_length",
    "largest_batch",
    "smallest_batch",
    "adam_beta2",
    "fwd_bwd_time",
)
"""InternEvo's log line, which people's tools read. Our fields follow after these."""


@dataclass(frozen=True)
class Measured:
    """What training on a batch measured, over all ranks unless it says otherwise.

    Attributes:
        loss: nats per token, the mean over micro-batches of their means over targets.
        grad_norm: of all gradients together, before clipping; inf or nan where the update was left out.
        lr: learning rate of the next update.
        beta2: Adam's, of the next update.
        loss_scale: of the next step.
        micro_num: micro-batches of one rank.
        segments: how this rank's micro-batches are cut into documents (`metrics.segments`).
        by_type: ``acc``, ``perplexity``, the experts' ``moe_loss``, and ``loss/``, ``acc/`` and ``tokens/`` of each
            data type.
        speed: ``mfu`` and ``hfu`` where they are known, and the averages ``tgs/...`` (`averages.SpeedAverages`).
        seconds: from asking for the batch to the updated parameters.
        fwd_bwd_seconds: of these, forward, backward and reduction.
        tflops: teraflops per rank; None where no formula is known (`throughput.Throughput`).
        tgs: tokens per rank and second.
        tokens_per_second: of all ranks together.
        time: when the step was done, unix seconds.
    """

    loss: float
    grad_norm: float
    lr: float
    beta2: float
    loss_scale: float
    micro_num: int
    segments: dict[str, int]
    by_type: dict[str, float]
    speed: dict[str, float]
    seconds: float
    fwd_bwd_seconds: float
    tflops: float | None
    tgs: float
    tokens_per_second: float
    time: float


@dataclass(frozen=True)
class StepRecord:
    """One step.

    Attributes:
        step: its number, from 0.
        tokens: of all batches drawn so far, this one included, over all ranks.
        skipped_updates: updates left out so far because gradients were inf or nan.
        measured: None where the batch was drawn and not trained on (``data.skip_batches``).
        scores: held-out scores after the step, ``val/<type>_loss`` and so on; empty where there was no evaluation.
        asked: what the run was asked from outside, alike on every rank; nothing is heard in a step that is skipped.
    """

    step: int
    tokens: int
    skipped_updates: int
    measured: Measured | None = None
    scores: dict[str, float] = field(default_factory=dict)
    asked: Asked = field(default_factory=Asked)

    @property
    def loss(self) -> float | None:
        """Of the batch; None where it was not trained on."""
        return None if self.measured is None else self.measured.loss

    def fields(self) -> dict[str, Any]:
        """The record as ``metrics.jsonl`` has it, in that order."""
        counts = {"num_consumed_tokens": self.tokens, "inf_nan_skip_batches": self.skipped_updates}
        if self.measured is None:
            return {"step": self.step, "loss": None, **counts, "skip_batches": True, **self.scores}
        it = self.measured
        return {
            "tflops": it.tflops,
            "step": self.step,
            "loss": it.loss,
            "tgs (tokens/gpu/second)": round(it.tgs, 2),
            "lr": it.lr,
            "loss_scale": it.loss_scale,
            "grad_norm": it.grad_norm,
            "micro_num": it.micro_num,
            **counts,
            **it.segments,
            "adam_beta2": it.beta2,
            "fwd_bwd_time": round(it.fwd_bwd_seconds, 2),
            **it.by_type,
            **it.speed,
            "tokens_per_second": round(it.tokens_per_second, 1),
            "step_time": round(it.seconds, 4),
            "time": it.time,
            **self.scores,
        }

    def log_line(self) -> str:
        """``key=value,key=value,...``, or one sentence for a batch that was not trained on."""
        if self.measured is None:
            return f"step={self.step} is in skip_batches: its batch is drawn and not trained on"
        return log_line(self.fields())

    def progress(self) -> dict[str, float | None]:
        """What ``progress.json`` says of the step beside how far the run is."""
        speed = None if self.measured is None else round(self.measured.tokens_per_second, 1)
        return {"loss": self.loss, "tokens": self.tokens, "tokens_per_second": speed}


def log_line(fields: dict[str, Any]) -> str:
    """``key=value,key=value,...``: InternEvo's fields in its order, then ours but the averages of speed."""
    ordered = [name for name in LOG_FIELDS if name in fields]
    ordered += [name for name in fields if name not in LOG_FIELDS and name != "time" and not name.startswith("tgs/")]
    return ",".join(f"{name}={fields[name]}" for name in ordered)
