"""Checkpoints of small models that read the texts of the task files in `tasks`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evo_core.checkpoint import TrainState, save
from evo_core.config import TrainConfig
from evo_core.data.tokenize.tokenizers import load_tokenizer, train_sentencepiece
from evo_core.model import build_model
from evo_core.placement import Placed, Placement
from tests.model.configs import randomise
from tests.ranks import run_on_ranks

TASKS = Path(__file__).with_name("tasks")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of steps 1 and 2, random and different."""
    root = tmp_path_factory.mktemp("readers")
    texts = [line for file in sorted(TASKS.glob("*.jsonl")) for line in file.read_text().splitlines()]
    tokenizer = train_sentencepiece(texts * 3, root / "words.model", vocab_size=400)
    cfg = TrainConfig.model_validate(
        {
            "job_name": "reader",
            "model_type": "INTERNLM2_PUBLIC",
            "model": {
                "num_layers": 2,
                "hidden_size": 32,
                "num_attention_heads": 4,
                "num_kv_attention_heads": 2,
                "vocab_size": load_tokenizer(tokenizer).vocab_size,
                "dtype": "torch.float64",
            },
            "data": {"tokenizer_path": str(tokenizer), "seq_len": 64, "train_folder": None},
            "ckpt": {"save_ckpt_folder": f"local:{root / 'ckpt'}"},
        }
    )

    def write() -> None:
        for step in (1, 2):
            model = build_model(cfg.model)
            randomise(model, seed=step, scale=0.5)
            save(
                root / "ckpt",
                cfg,
                model,
                {"moment": Placed(torch.zeros(1), Placement.whole((1,), [0]))},
                TrainState(step=step),
            )

    run_on_ranks(write, 1)
    return root / "ckpt"
