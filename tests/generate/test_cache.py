"""Generation with the key/value cache is generation without it, token for token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evo_core.generate import generate
from evo_core.generate.kv_cache import KVCache
from evo_core.model.ops.attention import Documents
from tests.generate.models import decoder, greedy_without_cache
from tests.model.llama import to_llama

PROMPTS = [[1, 7, 30, 4], [5], [9, 9, 9, 9, 9, 9, 9, 12], [60, 2]]

FAMILIES: dict[str, dict[str, Any]] = {
    "INTERNLM": {"model_type": "INTERNLM"},
    "INTERNLM2": {"num_kv_attention_heads": 2},
    "INTERNLM2, interleaved, post norm": {"qk_interleaved": True, "apply_post_layer_norm": True},
    "LLAMA2": {"model_type": "LLAMA2", "num_kv_attention_heads": 1, "no_bias": True},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_greedy_equals_reading_everything_anew(family: str, batch_size: int) -> None:
    model = decoder(**FAMILIES[family])
    results = generate(model, None, PROMPTS, max_new_tokens=12, do_sample=False, batch_size=batch_size)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.prompt_ids == prompt
        assert result.ids == greedy_without_cache(model, prompt, 12)


def test_left_padded_prompts_are_their_tokens() -> None:
    model = decoder()
    width, pad = max(map(len, PROMPTS)), 40
    padded = [[pad] * (width - len(prompt)) + prompt for prompt in PROMPTS]
    results = generate(model, None, padded, max_new_tokens=8, do_sample=False, pad_id=pad, batch_size=4)
    assert [result.prompt_ids for result in results] == PROMPTS
    assert [r.ids for r in results] == [greedy_without_cache(model, prompt, 8) for prompt in PROMPTS]


def test_greedy_equals_hugging_faces_generate() -> None:
    model = decoder(model_type="LLAMA2", qk_interleaved=False, no_bias=True, num_kv_attention_heads=2)
    llama = to_llama(model).double()
    results = generate(model, None, PROMPTS, max_new_tokens=20, do_sample=False, batch_size=2)
    for prompt, result in zip(PROMPTS, results, strict=True):
        ids = torch.tensor([prompt])
        theirs = llama.generate(ids, max_new_tokens=20, do_sample=False, attention_mask=torch.ones_like(ids))
        assert result.ids == theirs[0, len(prompt) :].tolist()


def test_the_cache_is_set_aside_once_and_forgets_rows() -> None:
    model = decoder(num_kv_attention_heads=2)
    cache = KVCache(model, rows=3, max_length=9)
    positions = cache.prefill([2, 3, 1])
    assert positions.tolist() == [0, 1, 0, 1, 2, 0]
    cu_seqlens = torch.tensor([0, 2, 5, 6], dtype=torch.int32)
    with torch.inference_mode():
        model.hidden(torch.tensor([3, 4, 5, 6, 7, 8]), positions, Documents(cu_seqlens), cache)
        cache.keep([0, 2])
        where = cache._keys.data_ptr()
        for _ in range(7):
            before = list(cache.lengths)
            positions = cache.step()
            assert positions.tolist() == before
            model.hidden(torch.tensor([11, 12]), positions, Documents(torch.tensor([0, 1, 2])), cache)
    assert cache.lengths == [9, 8]
    assert cache._keys.data_ptr() == where


def test_memory_that_held_nan_does_no_harm() -> None:
    model = decoder()
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        results = generate(model, None, PROMPTS, max_new_tokens=12, do_sample=False, batch_size=4)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [result.ids for result in results] == [greedy_without_cache(model, prompt, 12) for prompt in PROMPTS]
