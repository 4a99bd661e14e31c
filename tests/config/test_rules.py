"""The rules between settings: refusals name the numbers and the nearest legal choice."""

from __future__ import annotations

from typing import Any

import pytest

from evo_core.config.resolve import merge
from evo_core.errors import ConfigError
from tests.config.jobs import at, job, refusal

INTERNLM2 = {"model_type": "INTERNLM2_PUBLIC"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            at("model.num_attention_heads", 5),
            "model.num_attention_heads: hidden_size 64 does not divide into 5 heads (nearest: 4 or 8 heads, or "
            "state head_dim)",
        ),
        (
            at("model.num_layers", 10**9),
            "model.num_layers: 1000000000 blocks are more than any model has (at most 10000)",
        ),
        (
            at("ckpt", {"checkpoint_every": 40, "keep_every": 100}),
            "ckpt.keep_every: 100 is no multiple of checkpoint_every 40 (nearest: 80 or 120)",
        ),
        (
            at("ckpt", {"checkpoint_every": 40, "keep_every": 10}),
            "ckpt.keep_every: 10 is no multiple of checkpoint_every 40 (nearest: 40)",
        ),
        (at("model.num_attention_heads", 64), "model.num_attention_heads: a head is 1 wide; rotary positions need"),
        (
            INTERNLM2 | at("model.num_kv_attention_heads", 3),
            "model.num_kv_attention_heads: 4 query heads cannot share 3 key and value heads (nearest: 2 or 4)",
        ),
        (at("model.num_kv_attention_heads", 2), "INTERNLM has as many key and value heads as query heads"),
        (at("model.head_dim", 15), "model.head_dim: a head is 15 wide; rotary positions need an even width"),
        (at("model.num_experts", 4), "model.num_experts: INTERNLM has no experts (INTERNLM_MoE has)"),
        (
            {"model_type": "INTERNLM_MoE", "model": {"num_experts": 4}, "moe": {"top_k": 3}},
            "moe.top_k: the GShard router sends a token to 1 or 2 experts, not to 3 (moe_type MegaBlock takes more)",
        ),
        (
            {
                "model_type": "INTERNLM_MoE",
                "model": {"num_experts": 2, "moe_type": "MegaBlock"},
                "moe": {"top_k": 3},
            },
            "moe.top_k: 3 is more than the 2 experts there are",
        ),
        (
            {"model_type": "INTERNLM2_PUBLIC", "model": {"norm_head": True, "tie_word_embeddings": True}},
            "model.norm_head: scales the head's rows, which are the embedding's here",
        ),
        (
            at("model.rope_scaling", {"low_freq_factor": 4}),
            "model.rope_scaling: low_freq_factor 4 is not below high_freq_factor 4",
        ),
        (at("model.norm_head", True), "model.norm_head: INTERNLM has no such head"),
        (at("model.model_type", "LLAMA2") | {"model_type": "INTERNLM"}, "model.model_type: contradicts model_type"),
        (
            at("parallel.tensor.size", 3),
            "parallel.tensor.size: 3 ranks cannot share vocab_size 128, num_attention_heads 4, an MLP 256 wide, "
            "hidden_size 64 (nearest: 2 or 4)",
        ),
        (
            {"data": {"global_batch_tokens": 8192, "micro_num": 2}},
            "data.micro_num: follows from global_batch_tokens and the ranks at hand (state one of the two)",
        ),
        (
            {"data": {"global_batch_tokens": 5000, "seq_len": 256, "micro_bsz": 4}},
            "data.global_batch_tokens: 5000 tokens are no whole number of micro-batches of seq_len 256 x micro_bsz 4 = "
            "1024 tokens (nearest: 4096 or 5120)",
        ),
        (
            {"data": {"micro_num": 8, "rampup_batch_size": "2 4 10"}},
            "data.rampup_batch_size: from 2 in steps of 4 micro_num 8 is not reached (the increment must divide 6)",
        ),
        (
            {"data": {"micro_num": 2, "rampup_batch_size": "4 1 10"}},
            "data.rampup_batch_size: starts at 4, above micro_num 2",
        ),
        (
            {"data": {"global_batch_tokens": 4096, "rampup_batch_size": "1 1 10"}},
            "data.rampup_batch_size: counts micro-batches of each rank, which global_batch_tokens leaves open",
        ),
        (
            {"data": {"total_steps": 100}, "lr_scheduler": {"total_steps": 50}},
            "lr_scheduler.total_steps: 50 is less than data.total_steps 100: the schedule would end before the run",
        ),
        (
            {"data": {"total_steps": 10}, "lr_scheduler": {"init_steps": 8, "warmup_ratio": 0.2}},
            "lr_scheduler.warmup_ratio: init_steps 8 and a warm-up of 2 steps leave nothing of the 10 total_steps "
            "(at most 0.1)",
        ),
        (
            {"data": {"total_steps": 10}, "lr_scheduler": {"init_steps": 10}},
            "lr_scheduler.init_steps: 10 steps at a rate of 0 leave nothing of the 10 total_steps (nearest: 9)",
        ),
        (
            {"data": {"total_steps": 30}, "lr_scheduler": {"kind": "wsd", "warmup_ratio": 0.1, "decay_ratio": 0.95}},
            "lr_scheduler.decay_ratio: a decay of 28 steps does not fit behind init_steps 0 and a warm-up of 3 steps "
            "into 30 total_steps (at most 0.9)",
        ),
        (
            at("lr_scheduler", {"kind": "wsd", "decay_ratio": 0}),
            "lr_scheduler.decay_ratio: 0: wsd without a decay (state one above 0, or kind: constant)",
        ),
        (at("lr_scheduler.kind", "cosin"), 'not "cosin"; did you mean "cosine"?'),
        (at("lr_scheduler.decay_type", "sqr"), 'not "sqr"; did you mean "sqrt"?'),
        (at("adam.no_decay", ["norm", "bias", "norm"]), "adam.no_decay: names norm twice"),
        (at("adam.no_decay", ["biases"]), 'not "biases"; did you mean "bias"?'),
        (at("adam.lr", 1e-6), "lr_scheduler.eta_min: 1e-05 is above adam.lr 1e-06: the rate would rise to the end"),
        (at("grad_scaler.fp16.min_scale", 1e6), "grad_scaler.fp16.min_scale: 1e+06 is above initial_scale 65536"),
        (at("grad_scaler.max_scale", 1), "grad_scaler.max_scale: 1 is below fp16.initial_scale 65536"),
        (
            at("ckpt.load_ckpt_info", {"path": "x", "content": ["optimizer"]}),
            'ckpt.load_ckpt_info.content: without the model nothing can be loaded (add "model")',
        ),
        (
            at("ckpt.load_ckpt_info", {"path": "x", "ckpt_type": "llama"}),
            'ckpt.load_ckpt_info.content: of a checkpoint of type llama only ("model",) can be loaded',
        ),
        (at("generation.top_p", 0), "generation.top_p: must be above 0 and at most 1, not 0"),
        (at("generation.top_p", 1.1), "generation.top_p: must be above 0 and at most 1, not 1.1"),
        (at("generation.eos_id", []), "generation.eos_id: an empty list ends no text"),
        (at("generation.eos_id", [2, 128]), "generation.eos_id: 128 is no id of a vocabulary of 128"),
        (at("generation.temperature", 0), "generation.temperature: must be greater than 0, not 0"),
        (at("generation.prompts", []), "generation.prompts: is empty"),
        (
            {"data": {"type": "hf", "tokenizer_path": "x", "pack_sample_into_one": True}},
            "data.pack_sample_into_one: must",
        ),
        ({"data": {"type": "hf", "skip_batches": "1", "tokenizer_path": "x"}}, "data.skip_batches: must be empty"),
        ({"data": {"type": "hf"}}, "data.tokenizer_path: is required with data.type hf"),
        ({"data": {"type": "hf"}}, "data.train_folder: is required with data.type hf"),
        (at("data", {"packing": "internevo"}), "data.packing: internevo goes file by file, and there is no"),
        (
            at("data", {"packing": "internevo", "train_folder": "d", "use_packed_dataset": False}),
            "data.packing: internevo orders packs",
        ),
        (
            at("data", {"packing": "internevo", "train_folder": "d", "type_weights": {"en": 1}}),
            "data.packing: internevo mixes types by their tokens",
        ),
        (
            at("data", {"use_packed_dataset": False, "pack_sample_into_one": True}),
            "data.pack_sample_into_one: has no meaning with use_packed_dataset false",
        ),
        (at("data.type_weights", {"en": 0, "cn": 0}), "data.type_weights: no weight is above 0"),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"total_steps": 20}, "lr_scheduler": {"total_steps": 50000}},
        {"data": {"total_steps": 1}},
        {"data": {"micro_num": 8, "rampup_batch_size": "2 3 100"}},
        {"grad_scaler": {"fp16": {"min_scale": 1}, "max_scale": "2**24"}},
        {"model_type": "INTERNLM2_PUBLIC", "model": {"norm_head": True, "apply_post_layer_norm": True}},
        {
            "ckpt": {
                "load_ckpt_info": {"path": "x", "content": ["model"], "ckpt_type": "internlm"},
                "auto_resume": False,
            }
        },
        {"generation": {"top_p": 1, "top_k": 0, "eos_id": [2, 0], "prompts": ["a"]}},
        {"lr_scheduler": {"last_epoch": 5}},
        {"lr_scheduler": {"kind": "constant"}, "adam": {"lr": 1e-6}},
        {"data": {"total_steps": 5}, "lr_scheduler": {"kind": "wsd", "warmup_ratio": 0, "decay_ratio": 1}},
    ],
)
def test_legal_combinations(changes: dict[str, Any]) -> None:
    job(changes)


@pytest.mark.parametrize("total", [11, 30, 997, 50_000, 3_333_333])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 1 / 3, 0.9])
def test_what_is_said_of_a_decay_that_does_not_fit_is_taken(total: int, warmup: float) -> None:
    changes = {"data": {"total_steps": total}, "lr_scheduler": {"kind": "wsd", "warmup_ratio": warmup, "init_steps": 1}}
    said = refusal(merge(changes, at("lr_scheduler.decay_ratio", 1)))
    ratio = float(said.rpartition("at most ")[2].removesuffix(")"))
    rate = job(merge(changes, at("lr_scheduler.decay_ratio", ratio))).lr_scheduler
    assert rate.init_steps + rate.warmup_steps + rate.decay_steps in (total, total - 1, total - 2, total - 3, total - 4)


def test_micro_batches_follow_from_the_global_batch() -> None:
    config = job({"data": {"global_batch_tokens": 8192, "seq_len": 256, "micro_bsz": 4}})
    assert [config.micro_num(dp) for dp in (1, 2, 4, 8)] == [8, 4, 2, 1]
    config.check_world(4)
    with pytest.raises(ConfigError) as caught:
        config.check_world(3)
    assert str(caught.value) == (
        "data.global_batch_tokens: 8192 tokens are 8 micro-batches of 1024 tokens: they do not divide over 3 "
        "data-parallel ranks (nearest: data-parallel size 2 or 4, or 6144 or 9216 tokens)"
    )
    with pytest.raises(ConfigError, match="nearest: data-parallel size 8, or 16384 tokens"):
        config.check_world(16)
    assert job({"data": {"micro_num": 3}}).micro_num(5) == 3
    assert job({"parallel": {"zero1": 2}}).dp(4) == 4
