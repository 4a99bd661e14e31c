"""What isp needs of a job: refusals name the key and the nearest legal choices, before any work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from evo_core.config import load_config
from evo_core.config.resolve import merge
from evo_core.errors import ConfigError
from tests.config.jobs import CONFIGS, MODEL, at, job, refusal


def isp(tensor: int, weight: int, **blocks: Any) -> dict[str, Any]:
    sizes = {"tensor": {"size": tensor, "mode": "isp"}, "weight": {"size": weight}}
    return merge({"parallel": sizes}, blocks)


def heads(number: int, kv_heads: int, model_type: str = "INTERNLM2_PUBLIC", **model: Any) -> dict[str, Any]:
    shape = {"num_attention_heads": number, "num_kv_attention_heads": kv_heads}
    return {"model_type": model_type, "model": shape | model}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            at("parallel.weight.size", 2),
            "parallel.weight.size: weight.size 2 needs tensor.mode isp, not mtp "
            "(write tensor.mode isp, or set it to 1)",
        ),
        (
            at("parallel", {"weight": 4, "tensor": {"size": 2, "mode": "msp"}}),
            "parallel.weight.size: weight.size 4 needs tensor.mode isp, not msp "
            "(write tensor.mode isp, or set it to 1)",
        ),
        (
            isp(1, 2, parallel={"weight": {"memory_pool": True}}),
            "parallel.weight.memory_pool: needs weight.overlap (set weight.overlap to true, or memory_pool to false)",
        ),
        (
            isp(2, 2, parallel={"zero1": {"fsdp": True}}),
            "parallel.zero1.fsdp: fsdp needs another tensor.mode than isp, which splits parameters by weight.size "
            "(set it to false)",
        ),
        (
            isp(2, 4, model={"vocab_size": 127}),
            "model.vocab_size: 127 does not divide over tensor.size 2 (nearest: 126 or 128, or tensor.size 1)",
        ),
        (
            isp(8, 1),
            "model.num_attention_heads: 4 does not divide over tensor.size 8 (nearest: 8, or tensor.size 4)",
        ),
        (
            isp(4, 2, **heads(12, 6, hidden_size=96)),
            "model.num_kv_attention_heads: 6 does not divide over tensor.size 4, nor tensor.size by it "
            "(nearest: 4 or 12, or tensor.size 2)",
        ),
        (  # without weight ranks there is mtp, with them there is not
            isp(2, 4, data={"seq_len": 127}),
            "data.seq_len: micro-batches of seq_len 127 x micro_bsz 1 = 127 tokens do not divide over tensor.size 2, "
            "as isp needs (nearest: 126 or 128, or tensor.size 1)",
        ),
        (
            isp(2, 1, model={"attn_drop_rate": 0.1}),
            "model.attn_drop_rate: 0.1: attention weights are dropped inside the kernel, by the heads at hand, so with "
            "tensor.size 2 others would be dropped than in one process (set it to 0, or tensor.size to 1)",
        ),
        (
            isp(1, 16, model={"hidden_size": 72}),
            "model.hidden_size: 72 does not divide over weight.size 16 (nearest: 64 or 80, or weight.size 8)",
        ),
        (  # 192 divides, but not its 96 rows of keys
            isp(1, 64, **heads(12, 6, "LLAMA2", hidden_size=96)),
            "model.hidden_size: 96 does not divide over weight.size 64 (nearest: 384, or weight.size 16)",
        ),
        (
            isp(2, 4, model={"multiple_of": 2, "mlp_ratio": 1.02}),
            "model.multiple_of: the MLP is 66 wide, which does not divide over weight.size 4 "
            "(nearest: 4, or weight.size 2)",
        ),
        (
            isp(1, 32, **heads(12, 6, "LLAMA2", hidden_size=96)),
            "model.num_kv_attention_heads: 48 rows of keys and of values do not divide over weight.size 32 "
            "(nearest: 4 or 12, or weight.size 16)",
        ),
        (  # 4 or 8 key and value heads would divide, but cannot be dealt out to 3 ranks
            isp(3, 64, **heads(24, 3, vocab_size=129, hidden_size=192), data={"seq_len": 96}),
            "model.num_kv_attention_heads: 240 rows of queries, keys and values together do not divide over "
            "weight.size 64 (nearest: 12, or weight.size 16)",
        ),
        (
            isp(1, 32, **heads(4, 2, "QWEN3", head_dim=14)),
            "model.head_dim: 56 rows of queries and 28 rows of keys and of values do not divide over weight.size 32 "
            "(nearest: 16, or weight.size 4)",
        ),
        (
            isp(1, 3),
            "parallel.weight.size: 3 ranks cannot share hidden_size 64, an MLP 256 wide (nearest: 2 or 4)",
        ),
        (
            isp(3, 1),
            "parallel.tensor.size: 3 ranks cannot share vocab_size 128, num_attention_heads 4, hidden_size 64, "
            "micro-batches of 2048 tokens (nearest: 2 or 4)",
        ),
    ],
)
def test_one_error_with_the_nearest_choices(changes: dict[str, Any], message: str) -> None:
    assert refusal(changes) == message


@pytest.mark.parametrize(
    ("changes", "choices"),
    [
        (isp(1, 16, model={"hidden_size": 72}), {"model.hidden_size": [64, 80], "parallel.weight.size": [8]}),
        (
            isp(1, 64, **heads(12, 6, "LLAMA2", hidden_size=96)),
            {"model.hidden_size": [384], "parallel.weight.size": [16]},
        ),
        (isp(2, 4, model={"multiple_of": 2, "mlp_ratio": 1.02}), {"model.multiple_of": [4]}),
        (isp(1, 32, **heads(12, 6, "LLAMA2", hidden_size=96)), {"model.num_kv_attention_heads": [4, 12]}),
        (
            isp(3, 64, **heads(24, 3, vocab_size=129, hidden_size=192), data={"seq_len": 96}),
            {"model.num_kv_attention_heads": [12], "parallel.weight.size": [16]},
        ),
        (isp(1, 32, **heads(4, 2, "QWEN3", head_dim=14)), {"model.head_dim": [16], "parallel.weight.size": [4]}),
        (isp(1, 3), {"parallel.weight.size": [2, 4]}),
        (isp(3, 1), {"parallel.tensor.size": [2, 4]}),
    ],
)
def test_the_choices_are_legal(changes: dict[str, Any], choices: dict[str, list[int]]) -> None:
    for key, values in choices.items():
        for value in values:
            job(merge(changes, at(key, value)))


@pytest.mark.parametrize(
    "changes",
    [
        isp(4, 2, model={"multiple_of": 2, "mlp_ratio": 1.02}),  # an MLP 66 wide is gathered by 2, and never cut by 4
        isp(1, 4, model={"attn_drop_rate": 0.1}, data={"seq_len": 127}),  # each rank attends to its own tokens
        isp(2, 4, parallel={"weight": {"overlap": True, "memory_pool": True}}),
        isp(8, 1, **heads(8, 1)),
        isp(1, 1, parallel={"weight": {"memory_pool": True}}),
        isp(1, 64, model={"vocab_size": 127}),
        isp(2, 2, model={"compile": True}),
        *(isp(2, 2, parallel={"pipeline": {"size": 2, "mode": mode}}) for mode in ("1F1B", "ZBH1")),
        isp(2, 2, parallel={"pipeline": {"size": 2, "mode": "ZBV"}}, model={"num_chunks": 2}, data={"micro_num": 2}),
    ],
)
def test_what_fits(changes: dict[str, Any]) -> None:
    job(changes)


def test_a_slip_of_the_hand_is_answered_at_once() -> None:
    said = refusal(isp(1, 7, model={"hidden_size": 10**12, "num_attention_heads": 10**6, "multiple_of": 7}))
    assert said.startswith(
        "model.hidden_size: 1000000000000 does not divide over weight.size 7 (nearest: 999992000000 or "
    )


def test_ranks_divide_by_both_sizes() -> None:
    for world in (4, 8):
        job(isp(2, 4)).check_world(world)
    for world, sizes, message in (
        (6, (2, 4), "6 ranks do not divide into pipeline.size 1 x weight.size 4 (nearest: weight.size 3 or 6, or 4 or"),
        (6, (1, 4), "(nearest: weight.size 3 or 6, or 4 or 8 ranks)"),
        (6, (4, 2), "6 ranks do not divide into pipeline.size 1 x tensor.size 4 (nearest: tensor.size 3 or 6, or 4 or"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            job(isp(*sizes)).check_world(world)


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        (isp(1, 2, parallel={"weight": {"overlap": True, "memory_pool": True}}), []),
        (isp(2, 1), []),
        (
            isp(2, 1, parallel={"weight": {"overlap": True, "memory_pool": True}}),
            ["parallel.weight.overlap (weight.size is 1)", "parallel.weight.memory_pool (weight.size is 1)"],
        ),
        (isp(1, 1), ["parallel.tensor.mode (tensor.size and weight.size are 1)"]),
        (
            isp(1, 4, model={"parallel_output": False, "embed_split_hidden": True}),
            ["model.embed_split_hidden (tensor.size is 1)"],
        ),
    ],
)
def test_settings_of_isp_without_effect(changes: dict[str, Any], without: list[str]) -> None:
    assert job(changes).settings_without_effect("cuda") == without


def test_inference_is_told_of_ranks_that_cannot_share_the_model(tmp_path: Path) -> None:
    """Which exchange as by mtp: an MLP that isp gathers whole is cut then."""
    file = tmp_path / "job.yaml"
    shape = MODEL | {"multiple_of": 2, "mlp_ratio": 1.02}
    file.write_text(json.dumps(isp(4, 2, model=shape)))
    assert load_config(file).parallel.tensor.mode == "isp"
    with pytest.raises(ConfigError, match="MLP") as caught:
        load_config(file, inference=True)
    assert str(caught.value) == f"{file}:1: parallel.tensor.size: 4 ranks cannot share an MLP 66 wide (nearest: 2)"
    alone = load_config(file, ["parallel.tensor=1"], inference=True)
    assert (alone.parallel.tensor.size, alone.parallel.weight.size) == (1, 1)


def test_the_tutorials_job_with_isp_in_internevos_own_words(tmp_path: Path) -> None:
    text = (CONFIGS / "train" / "7B_sft.py").read_text()
    for was, now in (
        ('tensor=dict(size=1, mode="mtp")', 'tensor=dict(size=2, mode="isp")'),
        ("weight=dict(size=1, overlap=True, memory_pool=True)", "weight=dict(size=4, overlap=True, memory_pool=True)"),
    ):
        assert was in text
        text = text.replace(was, now)
    path = tmp_path / "7B_isp_sft.py"
    path.write_text(text)
    config = load_config(path)
    config.check_world(8)
    degrees = config.degrees(8)
    assert (degrees.tensor, degrees.data, degrees.weight, degrees.weight_data, degrees.zero1) == (2, 4, 4, 2, 2)
    assert not [line for line in config.settings_without_effect("cuda") if "weight" in line or "tensor.mode" in line]
    with pytest.raises(ConfigError, match=r"parallel\.weight\.size: 2 ranks do not divide .*\(nearest: weight\.size 2"):
        config.check_world(2)
