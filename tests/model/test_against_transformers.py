"""The same weights in Hugging Face's Llama give the same logits and gradients."""

from __future__ import annotations

import pytest
import torch

from evo_core.model import build_model
from tests.model.configs import packed, randomise, relative_error, tiny
from tests.model.llama import to_llama

HALVES = {"qk_interleaved": False, "no_bias": True, "num_kv_attention_heads": 2, "num_layers": 3}


@pytest.mark.parametrize("family", ["LLAMA2", "INTERNLM2_PUBLIC"])
def test_logits_and_gradients_equal_llamas(family: str) -> None:
    model = build_model(tiny(model_type=family, **HALVES))
    randomise(model)
    llama = to_llama(model)
    batch = packed([40])
    ours = model(batch["input_ids"], batch["positions"], batch["cu_seqlens"]).logits
    theirs = llama(input_ids=batch["input_ids"][None]).logits[0]
    assert relative_error(ours, theirs) < 1e-5

    ours_loss = model(**batch).loss
    ours_loss.backward()
    torch.nn.functional.cross_entropy(theirs, batch["labels"]).backward()
    for name, parameter in to_llama(model, gradients=True).named_parameters():
        assert relative_error(parameter, dict(llama.named_parameters())[name].grad) < 1e-5, name
