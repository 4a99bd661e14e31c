"""A checkpoint with a real tokenizer, as a training run leaves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from evo_core.checkpoint import TrainState, save
from evo_core.config import load_config
from evo_core.data.tokenize.tokenizers import load_tokenizer, train_sentencepiece
from evo_core.model import build_model
from evo_core.placement import Placed, Placement
from tests.model.configs import randomise
from tests.ranks import run_on_ranks

SENTENCES = ["the cat sat on the mat", "in the beginning was the word", "a cat is a cat", "the word is the word"]


@dataclass
class Trained:
    """A configuration file, the folder its checkpoints are in, and the tokenizer."""

    config: Path
    saved: Path
    tokenizer: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    tokenizer = train_sentencepiece(SENTENCES * 5, root / "letters.model", vocab_size=300)
    config = root / "job.yaml"
    job = {
        "model_type": "INTERNLM2_PUBLIC",
        "model": {
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_kv_attention_heads": 2,
            "vocab_size": load_tokenizer(tokenizer).vocab_size,
            "dtype": "torch.float64",
        },
        "data": {"tokenizer_path": str(tokenizer)},
        "ckpt": {"save_ckpt_folder": f"local:{root / 'ckpt'}"},
        "generation": {"max_new_tokens": 12, "batch_size": 2},
    }
    config.write_text(yaml.safe_dump(job))

    def write() -> None:
        cfg = load_config(config)
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
    return Trained(config, root / "ckpt", tokenizer)
