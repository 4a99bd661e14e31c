"""Small jobs on disk, to be estimated, and costs by arithmetic where it is the search that is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from evo_core.config import TrainConfig
from evo_core.config.resolve import merge
from evo_core.estimate.costs import RankCost
from evo_core.estimate.sketch import sketch

SMALL: dict[str, Any] = {
    "model_type": "LLAMA2",
    "model": {
        "num_layers": 4,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_kv_attention_heads": 4,
        "vocab_size": 2048,
        "no_bias": True,
    },
    "data": {"seq_len": 512, "micro_bsz": 2, "global_batch_tokens": 64 * 1024},
    "parallel": {"zero1": {"size": 2}},
    "ckpt": {"enable_save_ckpt": False},
}

TINY: dict[str, Any] = {
    "model": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_kv_attention_heads": 2},
    "data": {"seq_len": 64, "micro_bsz": 1, "global_batch_tokens": 8 * 64},
}
"""Blocks over the small job's that make its ranks cheap to run."""


def write(folder: Path, **blocks: Any) -> Path:
    """A job's file, with blocks laid over the small one."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(merge(SMALL, blocks)), encoding="utf-8")
    return path


def sketched(cfg: TrainConfig, world_size: int, rank: int) -> RankCost:
    """What the sketch of the rank that needs most says, of any rank."""
    cost = sketch(cfg, cfg.degrees(world_size))
    rest = cost.memory - cost.lasting
    return RankCost(rank, cost.parameters, 0, cost.gradients, cost.states, 0, 0, rest, cost.sent)
