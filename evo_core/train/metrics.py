"""What a training step is measured by: sums over all ranks, and from them the record that is logged.

The record's first fields are those of the original's log line, in its order; the tools people have read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from evo_core.config import ModelConfig
from evo_core.evaluate.perplexity import perplexity
from evo_core.evaluate.sums import sums_by_group

if TYPE_CHECKING:
    from evo_core.config import TrainConfig

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
"""The original's log line. Ours follow after these."""

_STOP, _STOP_FILE, _LOSS, _MOE_LOSS, _MICRO_BATCHES, _NLL, _HITS, _TYPES = range(8)


class StepTotals:
    """Sums of one step, laid out as one vector so that a single all-reduce makes them global.

    Vector: whether a rank was told to stop, the number in the stop file, the loss, the experts' balance loss, the
    micro-batches with the sums of their means of negative log-likelihood and of hits, then negative log-likelihood
    [n], hits [n] and targets [n] of each of the n data types.

    The loss of a step is a mean over its micro-batches of their means over targets, as in the original; ``acc`` and
    ``perplexity`` are of the same mean. A micro-batch without a target counts as 0 in it.

    Args:
        types: names of the data types, in the order of their ids.
        device: of the model.
    """

    def __init__(self, types: Sequence[str], device: torch.device) -> None:
        self.types, self.has_moe_loss = tuple(types), False
        self.vector = torch.zeros(_TYPES + 3 * len(self.types), dtype=torch.float64, device=device)

    def tell(self, *, stop: bool, stop_file: int) -> None:
        """What this rank knows: it was told to stop; what its stop file says (0 on all ranks but one)."""
        self.vector[_STOP], self.vector[_STOP_FILE] = float(stop), float(stop_file)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add a rank's share of the step's loss, a scalar."""
        self.vector[_LOSS] += loss.detach()

    def add_moe_loss(self, loss: torch.Tensor) -> None:
        """Add a rank's share of the balance loss of its experts, a scalar."""
        self.has_moe_loss = True
        self.vector[_MOE_LOSS] += loss.detach()

    def add_tokens(self, nll: torch.Tensor, hit: torch.Tensor, labels: torch.Tensor, type_ids: torch.Tensor) -> None:
        """Add the targets of one micro-batch; all arguments are [T]."""
        sums = sums_by_group(nll, hit, labels, type_ids, len(self.types))
        self.vector[_TYPES:] += sums.view(-1)
        nll_sum, hits, targets = sums.sum(dim=1)
        self.vector[_MICRO_BATCHES] += 1
        self.vector[_NLL] += nll_sum / targets.clamp(min=1)
        self.vector[_HITS] += hits / targets.clamp(min=1)

    @property
    def stop(self) -> bool:
        """Whether any rank was told to stop."""
        return float(self.vector[_STOP]) > 0

    @property
    def stop_file(self) -> int:
        """The number in the stop file."""
        return int(self.vector[_STOP_FILE])

    @property
    def loss(self) -> float:
        """The sum of all ranks' losses."""
        return float(self.vector[_LOSS])

    def moe(self, dp: int) -> dict[str, float]:
        """``moe_loss``, the mean over ``dp`` ranks of the balance losses, of a model that has experts."""
        return {"moe_loss": float(self.vector[_MOE_LOSS]) / dp} if self.has_moe_loss else {}

    def quality(self) -> dict[str, float]:
        """``acc`` and ``perplexity`` of the step; ``loss/``, ``acc/`` and ``tokens/`` over all targets of each type."""
        micro_batches, mean_nll, mean_hits = self.vector[_MICRO_BATCHES:_TYPES].tolist()
        nll, hits, targets = self.vector[_TYPES:].view(3, -1).tolist()
        result = {
            "acc": mean_hits / max(micro_batches, 1),
            "perplexity": perplexity(mean_nll / max(micro_batches, 1)),
        }
        for name, n, h, t in zip(self.types, nll, hits, targets, strict=True):
            if t:
                result |= {f"loss/{name}": n / t, f"acc/{name}": h / t, f"tokens/{name}": int(t)}
        return result


@dataclass(frozen=True)
class Throughput:
    """How fast steps are, in the original's terms, so that numbers compare.

    tflops per GPU = c {[(8 + 4 m) B S h^2 + 4 B S^2 h] L} / 1 + 6 B S h V, over time * ranks * 10^12, with c = 4 where
    any block is recomputed in backward, else 3; m = 1.5 mlp_ratio (three matrices); B sequences of S tokens in a step;
    h, L, V hidden size, layers, vocabulary. It counts attention as if it were not causal and a fraction of recomputed
    blocks as all of them. Of a model type of a user's own the formula says nothing: ``num_layers`` is 0 then.
    """

    world_size: int
    dp: int
    seq_len: int
    micro_bsz: int
    hidden_size: int
    num_layers: int
    vocab_size: int
    mlp_ratio: float
    recomputes: bool

    @classmethod
    def of(cls, cfg: TrainConfig, *, world_size: int, dp: int) -> Throughput:
        """For a training job on so many ranks."""
        model = cfg.model
        ours = isinstance(model, ModelConfig)
        return cls(
            world_size=world_size,
            dp=dp,
            seq_len=cfg.data.seq_len,
            micro_bsz=cfg.data.micro_bsz,
            hidden_size=model.hidden_size if ours else 0,
            num_layers=model.num_layers if ours else 0,
            vocab_size=model.vocab_size,
            mlp_ratio=float(model.mlp_ratio) if ours else 0.0,
            recomputes=ours and float(model.checkpoint) > 0,
        )

    def step_tokens(self, micro_num: int) -> int:
        """Tokens of a step over all ranks."""
        return micro_num * self.micro_bsz * self.seq_len * self.dp

    def tgs(self, micro_num: int, seconds: float) -> float:
        """Tokens per rank and second."""
        return self.step_tokens(micro_num) / self.world_size / seconds

    def tflops(self, micro_num: int, seconds: float) -> float | None:
        """Teraflops per rank, by the formula above; None where it does not apply."""
        if self.num_layers == 0:
            return None
        b, s, h = self.micro_bsz * micro_num * self.dp, self.seq_len, self.hidden_size
        passes = 4 if self.recomputes else 3
        layer = (8 + 4 * 1.5 * self.mlp_ratio) * b * s * h**2 + 4 * b * s**2 * h
        flops = passes * layer * self.num_layers + 6 * b * s * h * self.vocab_size
        return flops / (seconds * self.world_size * 1e12)


def segments(cu_seqlens: Sequence[torch.Tensor]) -> dict[str, int]:
    """How a step's micro-batches are cut into documents, on this rank.

    Returns:
        ``num_samples_in_batch``: documents in all; ``largest_length``: tokens of the longest; ``largest_batch`` and
        ``smallest_batch``: most and fewest documents in one micro-batch.
    """
    counts = [len(offsets) - 1 for offsets in cu_seqlens]
    return {
        "num_samples_in_batch": sum(counts),
        "largest_length": max(int(offsets.diff().max()) for offsets in cu_seqlens),
        "largest_batch": max(counts),
        "smallest_batch": min(counts),
    }


def log_line(record: dict[str, Any]) -> str:
    """``key=value,key=value,...``: the original's fields in its order, then ours."""
    ordered = [name for name in LOG_FIELDS if name in record]
    ordered += [name for name in record if name not in LOG_FIELDS and name != "time"]
    return ",".join(f"{name}={record[name]}" for name in ordered)
