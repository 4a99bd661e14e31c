"""Generation with the key/value cache is generation without it, token for token."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from evo_core.generate import generate, kv_cache
from evo_core.generate.batch import DecodingBatch, Row
from evo_core.generate.forward import Forward
from evo_core.generate.kv_cache import KVCache
from evo_core.generate.sampling import Sampling
from evo_core.model.ops.attention import CausalAttention
from evo_core.model.ops.norm import Norm
from tests.generate.models import decoder, greedy_without_cache, logits_without_cache
from tests.model.llama import to_llama

GREEDY = Sampling(do_sample=False)
PROMPTS = [[1, 7, 30, 4], [5], [9, 9, 9, 9, 9, 9, 9, 12], [60, 2]]

FAMILIES: dict[str, dict[str, Any]] = {
    "INTERNLM": {"model_type": "INTERNLM"},
    "INTERNLM2": {"num_kv_attention_heads": 2},
    "INTERNLM2, interleaved, post norm": {"qk_interleaved": True, "apply_post_layer_norm": True},
    "LLAMA2": {"model_type": "LLAMA2", "num_kv_attention_heads": 1, "no_bias": True},
    "INTERNLM, layer norm, no gate": {"model_type": "INTERNLM", "norm_type": "layernorm", "use_swiglu": False},
    "QWEN3": {"model_type": "QWEN3", "num_kv_attention_heads": 2},
    "INTERNLM2, normed queries and keys": {"qk_norm": True, "num_kv_attention_heads": 2},
    "INTERNLM_MoE": {"model_type": "INTERNLM_MoE", "num_experts": 4, "moe_type": "MegaBlock-D"},
    "INTERNLM2, normed head": {"norm_head": True, "embed_grad_scale": 0.1},
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


def test_greedy_equals_hugging_faces_generate_over_left_padded_batches() -> None:
    model = decoder(model_type="LLAMA2", qk_interleaved=False, no_bias=True, num_kv_attention_heads=2)
    llama = to_llama(model).double()
    width = max(map(len, PROMPTS))
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    theirs = llama.generate(padded, attention_mask=mask, max_new_tokens=200, do_sample=False, pad_token_id=0)
    for batch_size in (4, 3):
        results = generate(model, None, PROMPTS, max_new_tokens=200, do_sample=False, batch_size=batch_size)
        assert [result.ids for result in results] == theirs[:, width:].tolist()


@pytest.mark.parametrize("ahead", [1, 5, 512])
def test_short_path_and_modules_agree_while_rows_join_and_leave(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "AHEAD", ahead)  # how often the cache moves
    model = decoder(num_kv_attention_heads=2)
    short, modules = Forward(model), Forward(model)
    assert short._short
    modules._short = False
    rng = random.Random(0)
    batches = [DecodingBatch(forward, [], 61) for forward in (short, modules)]
    expected: dict[tuple[int, ...], list[int]] = {}
    rows: list[list[Row]] = [[], []]
    for _ in range(6):
        prompts = [[rng.randrange(61) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 3))]
        more = rng.randint(1, 12)
        for batch, all_rows in zip(batches, rows, strict=True):
            new = [Row(prompt, len(prompt) + more, GREEDY) for prompt in prompts]
            all_rows += new
            batch.add(new)
            for _ in range(3):
                if batch.rows:
                    batch.step()
        expected |= {(*prompt, -more): greedy_without_cache(model, prompt, more) for prompt in prompts}
        if batches[0].rows:
            leaver = rows[0].index(rng.choice(batches[0].rows))
            for batch, all_rows in zip(batches, rows, strict=True):
                batch.remove([all_rows[leaver]])
    for batch, all_rows in zip(batches, rows, strict=True):
        while batch.rows:
            batch.step()
        for row in all_rows:
            full = expected[(*row.prompt, len(row.prompt) - row.limit)]
            assert row.new == full[: len(row.new)]
        assert sum(row.done for row in all_rows) > 3
    assert [row.new for row in rows[0]] == [row.new for row in rows[1]]


def test_rows_are_taken_several_times_and_reordered() -> None:
    model = decoder()
    forward, cache = Forward(model), KVCache(model)
    prompts = [[3, 4, 5], [6], [7, 8]]
    with torch.inference_mode():
        forward.prompts(prompts, [5, 5, 5], cache)
        cache.select([2, 0, 0, 2, 2])
        logits = forward.step(torch.tensor([9, 10, 11, 12, 9]), cache)
        cache.select([4, 1])
        after = forward.step(torch.tensor([20, 21]), cache)
    for row, ids in enumerate(([7, 8, 9], [3, 4, 5, 10], [3, 4, 5, 11], [7, 8, 12], [7, 8, 9])):
        assert torch.allclose(logits[row], logits_without_cache(model, ids))
    for row, ids in enumerate(([7, 8, 9, 20], [3, 4, 5, 10, 21])):
        assert torch.allclose(after[row], logits_without_cache(model, ids))
    assert cache.lengths == [4, 5]


HOOKED: dict[str, Callable[[Any], nn.Module]] = {
    "embedding": lambda model: model.embedding,
    "block": lambda model: model.blocks["1"],
    "projection": lambda model: model.blocks["0"].mlp.down,
    "norm of a block": lambda model: model.blocks["0"].attention_norm,
    "last norm": lambda model: model.norm,
}


@pytest.mark.parametrize("hooked", HOOKED)
@pytest.mark.parametrize("before", [False, True], ids=["behind", "before"])
def test_what_hooks_do_to_a_pass_they_do_to_every_token(hooked: str, before: bool) -> None:
    model = decoder()
    module = HOOKED[hooked](model)

    def changed(x: Any) -> Any:
        if isinstance(x, tuple):  # of a block, or what it is called with
            return changed(x[0]), *x[1:]
        return x.flip(-1) if x.is_floating_point() else 3 * x % 61

    if before:
        module.register_forward_pre_hook(lambda _, args: changed(args))
    else:
        module.register_forward_hook(lambda _, args, out: changed(out))
    results = generate(model, None, PROMPTS, max_new_tokens=12, do_sample=False, batch_size=4)
    assert [result.ids for result in results] == [greedy_without_cache(model, prompt, 12) for prompt in PROMPTS]


class Sharper(CausalAttention):
    """Attention of one's own."""

    def forward(self, q: Any, *rest: Any, **more: Any) -> Any:
        return super().forward(2 * q, *rest, **more)


class Twice(Norm):
    """A norm of one's own."""

    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x).flip(-1)


def test_parts_of_ones_own_are_there_for_every_token() -> None:
    expected = greedy_without_cache(decoder(), PROMPTS[0], 12)
    for replace in ("core", "norm"):
        model = decoder()
        if replace == "core":
            model.blocks["0"].attention.core.__class__ = Sharper  # type: ignore[union-attr]
        else:
            model.norm.__class__ = Twice  # type: ignore[union-attr]
        results = generate(model, None, PROMPTS, max_new_tokens=12, do_sample=False, batch_size=4)
        assert [result.ids for result in results] == [greedy_without_cache(model, prompt, 12) for prompt in PROMPTS]
        assert results[0].ids != expected


def test_memory_that_held_nan_does_no_harm() -> None:
    model = decoder()
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        results = generate(model, None, PROMPTS, max_new_tokens=12, do_sample=False, batch_size=4)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [result.ids for result in results] == [greedy_without_cache(model, prompt, 12) for prompt in PROMPTS]
