"""The small job that every layout runs: uneven documents, several micro-batches, a model that has everything to cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evo_core.config import TrainConfig
from evo_core.config.resolve import merge

STEPS = 5
MICRO_BATCHES = 8
"""Of a step, over all ranks: two or more on each of four."""

SEQ_LEN, MICRO_BSZ = 32, 2
LAYERS = 4
VOCAB_SIZE = 92

Settings = dict[str, Any]
"""Blocks of a configuration as nested plain data."""


def small_model() -> Settings:
    """The blocks of a model with odd widths, whose two key/value heads four ranks have to repeat."""
    return {
        "model_type": "INTERNLM2_PUBLIC",
        "model": {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 48,
            "num_layers": LAYERS,
            "num_attention_heads": 8,
            "num_kv_attention_heads": 2,
            "mlp_ratio": 2.2,
            "multiple_of": 12,
            # Far from zero: of nearly even attention, gradients of queries and keys would be rounding alone.
            **dict.fromkeys(STDS, 0.15),
        },
    }


STDS = (
    "embedding_init_std",
    "attn_wqkv_init_std",
    "attn_other_init_std",
    "ffn_uplayer_init_std",
    "ffn_other_init_std",
    "out_head_init_std",
)


def training(data: Path) -> Settings:
    """The blocks of a job of a few steps; clipping is always at work, and gradients take several messages."""
    return {
        "enable_tb": False,
        "data": {
            "train_folder": str(data),
            "seq_len": SEQ_LEN,
            "micro_bsz": MICRO_BSZ,
            "global_batch_tokens": SEQ_LEN * MICRO_BSZ * MICRO_BATCHES,
            "total_steps": STEPS,
            "num_worker": 0,
        },
        # Where a gradient is rounding alone, Adam would make a whole step of it, and every later one another; such an
        # epsilon keeps steps in proportion to gradients, which clipping makes as small as it.
        "adam": {"lr": 1e-3, "adam_eps": 1e-4},
        "lr_scheduler": {"total_steps": STEPS, "init_steps": 0, "warmup_ratio": 0.0, "eta_min": 1e-4},
        "hybrid_zero_optimizer": {"clip_grad_norm": 0.1, "reduce_bucket_size": 20_000},
        "ckpt": {"enable_save_ckpt": False},
    }


def job(*blocks: Mapping[str, Any], dtype: str) -> TrainConfig:
    """A checked job of several settings, later ones laid over earlier ones.

    Args:
        dtype: float64, float32 or bfloat16.

    Raises:
        ConfigError: they do not go together.
    """
    settings: Settings = {}
    for each in (*blocks, {"model": {"dtype": f"torch.{dtype}"}}):
        settings = merge(settings, dict(each))
    return TrainConfig.model_validate(settings)


def write_documents(folder: Path, vocab_size: int) -> None:
    """Token shards of two types of text: documents of 2 to 70 tokens, so that some fill several segments and many
    share one."""
    import numpy as np

    from evo_core.data import BinWriter

    random = np.random.RandomState(0)
    for name in ("code", "en"):
        with BinWriter(folder / name / "train_000.bin", durable=False) as writer:
            for _ in range(60):
                writer.write(random.randint(0, vocab_size, random.randint(2, 70)).astype(np.int64))
