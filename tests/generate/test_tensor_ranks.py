"""Ranks that hold a model together generate the tokens of one process, and hold no more than their own heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evo_core.generate import generate, stream
from evo_core.generate.forward import Forward
from evo_core.generate.kv_cache import KVCache
from evo_core.model import Decoder
from evo_core.parallel.apply import build_parallel
from evo_core.placement import Placed, placements_of
from tests.generate.models import LetterTokenizer, decoder, rows_that_come_and_go
from tests.parallel.meshes import mesh_of
from tests.ranks import run_on_ranks

PROMPTS = [[1, 7, 30, 4], [5], [9, 9, 9, 9, 9, 9, 9, 12]]
FAMILIES: dict[str, dict[str, Any]] = {
    "INTERNLM": {"model_type": "INTERNLM"},
    "INTERNLM2": {"num_kv_attention_heads": 2},
    "interleaved, post norm": {"qk_interleaved": True, "apply_post_layer_norm": True, "num_kv_attention_heads": 2},
    "LLAMA2": {"model_type": "LLAMA2", "num_kv_attention_heads": 1, "embed_split_hidden": True},
    "layer norm, no gate": {"model_type": "INTERNLM", "norm_type": "layernorm", "use_swiglu": False},
    "QWEN3, tied": {"model_type": "QWEN3", "num_kv_attention_heads": 2, "tie_word_embeddings": True},
    "INTERNLM_MoE": {"model_type": "INTERNLM_MoE", "num_experts": 4, "moe_type": "MegaBlock-D"},
    "normed head": {"norm_head": True, "parallel_output": False},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False, "batch_size": 3},
    "sampled": {"top_p": 0.9, "temperature": 2.0, "batch_size": 2},
    "penalised": {"do_sample": False, "repetition_penalty": 1.5, "eos_id": 9, "batch_size": 3},
    "beams": {"do_sample": False, "num_beams": 3, "batch_size": 2},
    "drawn beams": {"num_beams": 2, "temperature": 2.0, "repetition_penalty": 1.2, "batch_size": 3},
    "stretched": {"do_sample": False, "dynamic_ntk": True, "batch_size": 3},
}


def whole(family: str) -> Decoder:
    """A model of that family; texts beyond 6 tokens are long ones to it."""
    return decoder(vocab_size=64, max_position_embeddings=6, **FAMILIES[family])


def part_of(model: Decoder, size: int, mode: str = "mtp") -> Decoder:
    """What this rank holds of a model on `size` tensor ranks."""
    own: Any = build_parallel(model.cfg, mesh_of(tensor=size), "cpu", mode=mode, dtype=model.dtype)
    placements = placements_of(own)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            Placed(parameter, placements[name]).fill(weights[name])
    return own.eval()


def texts(model: Decoder, *settings: str) -> list[list[list[int]]]:
    return [
        [result.ids for result in generate(model, None, PROMPTS, max_new_tokens=7, seed=3, **SETTINGS[name])]
        for name in settings
    ]


@pytest.mark.parametrize(
    ("size", "asked"),
    [
        (2, {family: ["greedy", "drawn beams"] for family in FAMILIES} | {"INTERNLM2": list(SETTINGS)}),
        # Heads that several ranks hold, in a fused projection and in three.
        (4, {"INTERNLM2": ["greedy", "stretched"], "LLAMA2": ["sampled"], "QWEN3, tied": ["beams"]}),
    ],
)
def test_the_tokens_of_one_process(size: int, asked: dict[str, list[str]]) -> None:
    expected = {family: texts(whole(family), *settings) for family, settings in asked.items()}

    def ranks() -> Any:
        return {family: texts(part_of(whole(family), size), *settings) for family, settings in asked.items()}

    for found in run_on_ranks(ranks, size):
        assert found == expected


def test_short_path_and_modules_agree_while_rows_join_and_leave() -> None:
    def of(model: Decoder, *, short: bool) -> list[list[int]]:
        return [row.new for row in rows_that_come_and_go(model, short=short)]

    families = ("layer norm, no gate", "QWEN3, tied", "INTERNLM_MoE")
    expected = {family: of(whole(family), short=True) for family in families}

    def ranks() -> Any:
        return [{family: of(part_of(whole(family), 2), short=short) for family in families} for short in (True, False)]

    for found in run_on_ranks(ranks, 2):
        assert found == [expected, expected]


def test_each_rank_remembers_its_own_heads() -> None:
    @torch.inference_mode()
    def ranks() -> Any:
        heads = []
        for family in ("INTERNLM2", "LLAMA2", "INTERNLM"):
            model = part_of(whole(family), 4)
            cache = KVCache(model)
            Forward(model).prompts([[3, 4, 5], [6]], [5, 5], cache)
            heads.append({layer: kept.shape[2] for layer, kept in cache.layers.items()})
        return heads

    # Two heads, one head and four heads, on four ranks: none holds two of them.
    assert run_on_ranks(ranks, 4) == [[{0: 1, 1: 1}] * 3] * 4


def test_ranks_that_would_choose_otherwise_follow_the_first() -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "temperature": 3.0, "batch_size": 3}

    def ranks() -> Any:
        rank = torch.distributed.get_rank()
        model = part_of(whole("INTERNLM2"), 2)
        one = [result.ids for result in generate(model, None, PROMPTS, seed=rank, **settings)]
        beams = [result.ids for result in generate(model, None, PROMPTS, seed=rank, num_beams=2, **settings)]
        return one, beams

    first, second = run_on_ranks(ranks, 2)
    assert first == second
    model = whole("INTERNLM2")
    of_seed_1 = [result.ids for result in generate(model, None, PROMPTS, seed=1, **settings)]
    assert first[0] == [result.ids for result in generate(model, None, PROMPTS, seed=0, **settings)] != of_seed_1


def test_a_stream_is_that_of_one_process() -> None:
    letters = LetterTokenizer()

    def pieces(model: Decoder) -> list[str]:
        return list(stream(model, letters, "the cat", max_new_tokens=12, seed=4, temperature=2.0))

    expected = pieces(whole("INTERNLM2"))
    assert run_on_ranks(lambda: pieces(part_of(whole("INTERNLM2"), 2)), 2) == [expected] * 2


def test_weights_that_are_no_numbers_end_a_text_on_every_rank() -> None:
    def ranks() -> Any:
        model = part_of(whole("INTERNLM2"), 2)
        if torch.distributed.get_rank() == 1:
            with torch.no_grad():
                model.head.weight[3, 0] = float("nan")
        return [
            [result.error for result in generate(model, None, PROMPTS, max_new_tokens=3, num_beams=beams)]
            for beams in (1, 2)
        ]

    first, second = run_on_ranks(ranks, 2)
    assert first == second
    assert all("are not finite" in error for errors in first for error in errors)


def test_ranks_that_see_a_part_of_the_sequence_are_refused() -> None:
    def ranks() -> str:
        with pytest.raises(ValueError, match="whole sequences") as caught:
            generate(part_of(whole("INTERNLM2"), 2, mode="msp"), None, PROMPTS)
        return str(caught.value)

    run_on_ranks(ranks, 2)
