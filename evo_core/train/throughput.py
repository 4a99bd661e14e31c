"""How fast steps are: tokens per rank and second, teraflops by InternEvo's formula, and the share of the chips used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evo_core.config import ModelConfig
from evo_core.parallel.pipeline.placing import placing_of
from evo_core.train.flops import Flops, hardware_flops, model_flops

if TYPE_CHECKING:
    from evo_core.config import TrainConfig


@dataclass(frozen=True)
class Throughput:
    """How fast steps are, in InternEvo's terms, so that numbers compare.

    tflops per GPU = c {[(8 + 4 m) B S h^2 + 4 B S^2 h] L} / 1 + 6 B S h V, over time * ranks * 10^12, with c = 4 where
    any block is recomputed in backward, else 3; m = 1.5 mlp_ratio (three matrices); B sequences of S tokens in a step;
    h, L, V hidden size, layers, vocabulary. It counts attention as if it were not causal and a fraction of recomputed
    blocks as all of them. Of a model type of a user's own the formula says nothing: ``num_layers`` is 0 then.

    `utilization` counts what is computed instead (`evo_core.train.flops`).
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
    model: Flops | None = None
    hardware: Flops | None = None
    peak: float | None = None

    @classmethod
    def of(cls, cfg: TrainConfig, *, world_size: int, dp: int, peak: float | None = None) -> Throughput:
        """For a training job on so many ranks.

        Args:
            peak: teraflops of a rank's chip, if known.
        """
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
            model=model_flops(model) if ours else None,
            hardware=hardware_flops(model, _computed_again(cfg)) if ours else None,
            peak=peak,
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

    def utilization(self, micro_num: int, pairs: float, seconds: float) -> dict[str, float]:
        """``mfu`` and ``hfu``, shares of what the chips of all ranks could do: of what the model needs, and of what is
        computed for it. Nothing where formula or chip are not known.

        Args:
            pairs: of a token and one that it sees, of all ranks (`flops`).
        """
        if self.model is None or self.hardware is None or self.peak is None:
            return {}
        most, tokens = self.peak * 1e12 * self.world_size * seconds, self.step_tokens(micro_num)
        return {name: each.of(tokens, pairs) / most for name, each in (("mfu", self.model), ("hfu", self.hardware))}


def _computed_again(cfg: TrainConfig) -> int:
    """Blocks that run again in the backward pass: a fraction of each stage."""
    stages = placing_of(cfg).cut(cfg.model.num_layers)
    return sum(len(stage.recomputed(float(cfg.model.checkpoint))) for stage in stages)
