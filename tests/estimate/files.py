"""Small jobs on disk, to be estimated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from evo_core.config.resolve import merge

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


def write(folder: Path, **blocks: Any) -> Path:
    """A job's file, with blocks laid over the small one."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(merge(SMALL, blocks)), encoding="utf-8")
    return path
