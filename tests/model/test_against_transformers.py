"""The same weights in Hugging Face's Llama and Qwen3 give the same logits and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evo_core.model import build_model
from tests.model.configs import packed, randomise, relative_error, tiny
from tests.model.llama import to_llama

HALVES = {"qk_interleaved": False, "no_bias": True, "num_kv_attention_heads": 2, "num_layers": 3}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}

MODELS: dict[str, dict[str, Any]] = {
    "LLAMA2": {"model_type": "LLAMA2"},
    "INTERNLM2_PUBLIC": {"model_type": "INTERNLM2_PUBLIC"},
    "LLAMA3": {"model_type": "LLAMA3"},
    "LLAMA3, scaled": {"model_type": "LLAMA3", "rope_scaling": SCALING, "rope_base": 1000.0},
    "LLAMA3, tied": {"model_type": "LLAMA3", "tie_word_embeddings": True},
    "QWEN3": {"model_type": "QWEN3", "head_dim": 16},
    "QWEN3, tied": {"model_type": "QWEN3", "head_dim": 12, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_equal_theirs(name: str) -> None:
    model = build_model(tiny(**HALVES | MODELS[name]))
    randomise(model)
    theirs = to_llama(model)
    batch = packed([40])
    ours = model(batch["input_ids"], batch["positions"], batch["cu_seqlens"]).logits
    logits = theirs(input_ids=batch["input_ids"][None]).logits[0]
    assert relative_error(ours, logits) < 1e-5

    model(**batch).loss.backward()
    torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
    for key, parameter in to_llama(model, gradients=True).named_parameters():
        assert relative_error(parameter, dict(theirs.named_parameters())[key].grad) < 1e-5, key


def test_a_scaling_moves_the_logits() -> None:
    plain, scaled = (build_model(tiny(**HALVES | MODELS[name])) for name in ("LLAMA3", "LLAMA3, scaled"))
    randomise(plain)
    scaled.load_state_dict(plain.state_dict())
    batch = packed([40])
    places = (batch["input_ids"], batch["positions"], batch["cu_seqlens"])
    assert relative_error(plain(*places).logits, scaled(*places).logits) > 1e-2
