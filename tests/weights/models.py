"""Small models of every family, and what tests of formats ask of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo_core.model import Decoder, build_model
from evo_core.weights import Weights
from evo_core.weights.job import configuration
from evo_core.weights.lazy import held
from evo_core.weights.plain import PlainForm
from tests.model.configs import randomise, tiny

SHAPES: dict[str, dict[str, Any]] = {
    "INTERNLM": {},
    "INTERNLM2_PUBLIC": {"num_kv_attention_heads": 2, "no_bias": True},
    "LLAMA2": {"num_kv_attention_heads": 2, "no_bias": True},
    "LLAMA3": {
        "num_kv_attention_heads": 2,
        "rope_scaling": {"original_max_position_embeddings": 16, "factor": 4.0},
        "tie_word_embeddings": True,
    },
    "QWEN3": {"num_kv_attention_heads": 2, "head_dim": 16},
    "INTERNLM_MoE": {"num_experts": 4, "moe": {"top_k": 2}, "moe_use_residual": True},
}


def model(model_type: str, seed: int = 0, **settings: Any) -> Decoder:
    """A model of a family, float32 unless the settings say otherwise."""
    made = build_model(tiny(model_type=model_type, **SHAPES[model_type], **settings))
    randomise(made, seed)
    return made.eval()


def weights(made: Decoder, tokenizer: Path | None = None) -> Weights:
    """What a reader would give of a model."""
    own = {name: held(tensor) for name, tensor in made.state_dict().items()}
    folder = Path("memory")
    cfg = configuration(made.cfg.model_dump(exclude_unset=True), folder)
    return Weights(folder, "evo", cfg, PlainForm(made.cfg).to_plain(own), tokenizer)


@torch.no_grad()
def logits(made: Decoder, length: int = 24) -> Tensor:
    """[length, vocabulary] of a fixed text."""
    ids = torch.arange(length) * 7 % made.cfg.vocab_size
    return made(ids, torch.arange(length), torch.tensor([0, length], dtype=torch.int32)).logits


@torch.no_grad()
def their_logits(made: Any, length: int = 24) -> Tensor:
    """The same of a model of transformers."""
    ids = torch.arange(length) * 7 % made.config.vocab_size
    return made.eval()(ids[None]).logits[0]


def same(a: Decoder, b: Decoder) -> bool:
    """Whether two models have the same tensors, bit for bit."""
    theirs = b.state_dict()
    return a.state_dict().keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name])
        for name, tensor in a.state_dict().items()
    )


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
