"""Tiny training jobs for tests: a model of a few thousand parameters on a few thousand tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evo_core.config import TrainConfig
from evo_core.data import Batch, BinWriter, Prefetch

VOCAB = 64
TYPES = ("cn", "code", "en")


def write_tokens(folder: Path, *, documents: int = 40, seed: int = 0) -> Path:
    """Token shards of three types; each type counts in steps of its own, so there is something to learn."""
    random = np.random.RandomState(seed)
    for stride, name in enumerate(TYPES, 1):
        with BinWriter(folder / name / "train_000.bin") as writer:
            for _ in range(documents):
                start, length = random.randint(VOCAB), random.randint(5, 60)
                writer.write(((start + stride * np.arange(length)) % (VOCAB - 3) + 3).astype(np.int64))
    return folder


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The plain data of a job whose data and checkpoints are below `folder`; `changes` are ``block__key=value``."""
    if not (folder / "data").is_dir():
        write_tokens(folder / "data")
        write_tokens(folder / "valid", documents=6, seed=1)
    result: dict[str, Any] = {
        "job_name": "test",
        "model_type": "INTERNLM2_PUBLIC",
        "enable_tb": False,
        "data": {
            "train_folder": str(folder / "data"),
            "valid_folder": str(folder / "valid"),
            "seq_len": 32,
            "micro_bsz": 1,
            "global_batch_tokens": 128,
            "total_steps": 8,
        },
        "model": {
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "num_layers": 2,
            "num_attention_heads": 4,
            "num_kv_attention_heads": 2,
            "mlp_ratio": 2.0,
            "dtype": "torch.float64",
        },
        "adam": {"lr": 1e-2},
        "lr_scheduler": {"warmup_ratio": 0.25, "eta_min": 1e-3},
        "hybrid_zero_optimizer": {"clip_grad_norm": 1.0},
        "ckpt": {"save_ckpt_folder": f"local:{folder / 'ckpt'}", "checkpoint_every": 3},
        "parallel": {"zero1": {"size": -1}},
    }
    for key, value in changes.items():
        block, _, name = key.partition("__")
        if name:
            result.setdefault(block, {})[name] = value
        else:
            result[block] = value
    return result


def job(folder: Path, **changes: Any) -> TrainConfig:
    """The job as a checked configuration."""
    return TrainConfig.model_validate(settings(folder, **changes))


def write_job(folder: Path, **changes: Any) -> Path:
    """The job as a YAML file for the command."""
    path = folder / "job.yaml"
    path.write_text(json.dumps(settings(folder, **changes)))  # JSON is YAML
    return path


def curve(folder: Path) -> list[Mapping[str, Any]]:
    """The records of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in curve(folder)]


def run(cfg: TrainConfig, folder: Path) -> Any:
    """Train in this process and return the result."""
    from evo_core.train import train

    torch.set_num_threads(1)
    return train(cfg, folder=folder)


def before_each_step(act: Callable[[int], None]) -> None:
    """Have the runs of this process call `act(step)` before a step takes its batch; for ranks, which do not return."""
    draw = Prefetch.batch

    def batch(self: Prefetch, step: int) -> Batch:
        act(step)
        return draw(self, step)

    Prefetch.batch = batch  # type: ignore[method-assign]
