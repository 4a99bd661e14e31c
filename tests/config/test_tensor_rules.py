"""What must divide over the ranks that share each layer: one error, with the nearest legal choices."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from evo_core.config import TrainConfig, load_config
from evo_core.config.resolve import merge
from evo_core.config.tensor_rules import sharing_error
from evo_core.errors import ConfigError
from tests.config.jobs import CONFIGS, MODEL, at, job, refusal

SHAPE = {"hidden_size": 96, "num_attention_heads": 12, "num_kv_attention_heads": 6}
GROUPED: dict[str, Any] = {"model_type": "LLAMA2", "model": SHAPE}


def tensor(size: int, mode: str = "mtp", **blocks: Any) -> dict[str, Any]:
    return merge({"parallel": {"tensor": {"size": size, "mode": mode}}}, blocks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            tensor(2, model={"vocab_size": 127}),
            "model.vocab_size: 127 does not divide over tensor.size 2 (nearest: 126 or 128, or tensor.size 1)",
        ),
        (
            tensor(8),
            "model.num_attention_heads: 4 does not divide over tensor.size 8 (nearest: 8, or tensor.size 4)",
        ),
        (  # of 18 heads, 9 are too few to be shared by 6 ranks and by the 12 that there are
            tensor(4, model={"hidden_size": 72, "num_attention_heads": 18, "embed_split_hidden": False}),
            "model.num_attention_heads: 18 does not divide over tensor.size 4 (nearest: 12 or 36, or tensor.size 2)",
        ),
        (
            tensor(4, **GROUPED),
            "model.num_kv_attention_heads: 6 does not divide over tensor.size 4, nor tensor.size by it "
            "(nearest: 4 or 12, or tensor.size 2)",
        ),
        (
            tensor(4, model={"multiple_of": 2, "mlp_ratio": 1.02}),
            "model.multiple_of: the MLP is 66 wide, which does not divide over tensor.size 4 "
            "(nearest: 4, or tensor.size 2)",
        ),
        (
            tensor(4, model={"hidden_size": 90, "num_attention_heads": 12, "head_dim": 16}),
            "model.embed_split_hidden: hidden_size 90 does not divide over tensor.size 4 "
            "(set it to false, or tensor.size 2)",
        ),
        (
            tensor(2, "msp", data={"seq_len": 127}),
            "data.seq_len: micro-batches of seq_len 127 x micro_bsz 1 = 127 tokens do not divide over tensor.size 2, "
            "as msp needs (nearest: 126 or 128, or tensor.mode mtp, or tensor.size 1)",
        ),
        (  # any even seq_len will do
            tensor(4, "fsp", data={"seq_len": 127, "micro_bsz": 2}),
            "data.seq_len: micro-batches of seq_len 127 x micro_bsz 2 = 254 tokens do not divide over tensor.size 4, "
            "as fsp needs (nearest: 126 or 128, or tensor.mode mtp, or tensor.size 2)",
        ),
        (
            tensor(3),
            "parallel.tensor.size: 3 ranks cannot share vocab_size 128, num_attention_heads 4, an MLP 256 wide, "
            "hidden_size 64 (nearest: 2 or 4)",
        ),
        (
            tensor(2, model={"attn_drop_rate": 0.1}),
            "model.attn_drop_rate: 0.1: attention weights are dropped inside the kernel, by the heads at hand, so with "
            "tensor.size 2 others would be dropped than in one process (set it to 0, or tensor.size to 1)",
        ),
    ],
)
def test_one_error_with_the_nearest_choices(changes: dict[str, Any], message: str) -> None:
    assert refusal(changes) == message


@pytest.mark.parametrize(
    "changes",
    [
        tensor(4),
        tensor(1, model={"vocab_size": 127, "attn_drop_rate": 0.1}),
        tensor(
            12, **merge(GROUPED, {"model": {"vocab_size": 144, "multiple_of": 12}})
        ),  # each shared head on two ranks
        tensor(2, data={"seq_len": 127}),  # mtp leaves the sequence whole
        tensor(4, "fsp", data={"seq_len": 126, "micro_bsz": 2}),
        tensor(4, model={"drop_rate": 0.1}),
        tensor(4, model={"hidden_size": 90, "num_attention_heads": 12, "head_dim": 16, "embed_split_hidden": False}),
        tensor(4, model={"hidden_size": 90, "num_attention_heads": 12, "head_dim": 16, "tie_word_embeddings": True}),
    ],
)
def test_what_fits(changes: dict[str, Any]) -> None:
    job(changes)


@pytest.mark.parametrize("changes", [tensor(8), tensor(2, model={"vocab_size": 127}), tensor(4, **GROUPED), tensor(3)])
def test_the_choices_are_legal(changes: dict[str, Any]) -> None:
    message = refusal(changes)
    own, _, sizes = message.rpartition("nearest: ")[2].rpartition("tensor.size ")
    proposed = [(message.partition(":")[0], own), ("parallel.tensor.size", sizes)]
    for key, choice in [(key, int(number)) for key, numbers in proposed for number in re.findall(r"\d+", numbers)]:
        job(merge(changes, at(key, choice)))


def test_a_trained_model_can_only_be_shared_by_other_ranks() -> None:
    model = job(tensor(1, model={"vocab_size": 126})).model
    assert sharing_error(model, 2, "--tensor") is None
    assert str(sharing_error(model, 4, "--tensor")) == "--tensor: 4 ranks cannot share vocab_size 126 (nearest: 2)"
    assert str(sharing_error(model, 3, "--tensor")) == (
        "--tensor: 3 ranks cannot share num_attention_heads 4, an MLP 256 wide, hidden_size 64 (nearest: 2)"
    )


@pytest.mark.parametrize("mode", ["mtp", "msp", "fsp"])
def test_the_tutorials_job_at_every_mode(tmp_path: Path, mode: str) -> None:
    """In InternEvo's own words."""
    text = (CONFIGS / "train" / "7B_sft.py").read_text()
    was = 'tensor=dict(size=1, mode="mtp")'
    assert was in text
    path = tmp_path / "7B_sft.py"
    path.write_text(text.replace(was, f'tensor=dict(size=2, mode="{mode}")'))
    config = load_config(path)
    assert (config.parallel.tensor.size, config.parallel.tensor.mode) == (2, mode)
    config.check_world(8)
    assert config.dp(8) == 4
    with pytest.raises(ConfigError, match=r"parallel\.tensor\.size: 7 ranks do not divide .*tensor\.size 2"):
        config.check_world(7)


def test_a_layout_is_no_part_of_what_is_trained() -> None:
    """Four ranks of which two share each layer train what two ranks train."""
    alone: TrainConfig = job({"data": {"micro_num": 2}})
    for mode in ("mtp", "msp", "fsp", "isp"):
        assert job(tensor(2, mode, data={"micro_num": 2})).identity(4) == alone.identity(2)
    gathered = {"weight": {"size": 4, "overlap": True, "memory_pool": True}}
    assert job(tensor(2, "isp", data={"micro_num": 2}, parallel=gathered)).identity(4) == alone.identity(2)
    assert job(tensor(2, data={"global_batch_tokens": 8192})).identity(4) == (
        job({"data": {"global_batch_tokens": 8192}}).identity(1)
    )


def test_settings_of_tensor_parallelism_without_effect() -> None:
    stated = {"embed_split_hidden": True, "parallel_output": True, "tie_word_embeddings": True}
    assert job(tensor(2, model=stated)).settings_without_effect("cuda") == [
        "model.embed_split_hidden (the embedding is the head too, which is cut by vocabulary)"
    ]
    assert job(tensor(2, model=stated | {"tie_word_embeddings": False})).settings_without_effect("cuda") == []
    assert job(tensor(1, "msp", model=stated)).settings_without_effect("cuda") == [
        "model.parallel_output (tensor.size is 1)",
        "model.embed_split_hidden (tensor.size is 1)",
        "parallel.tensor.mode (tensor.size is 1)",
    ]


@pytest.mark.parametrize(
    ("parallel", "pipeline"),
    [
        ({"tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 2, "overlap": True}}, 1),
        ({"tensor": {"size": 2, "mode": "fsp"}, "zero1": {"size": 3, "fsdp": True}}, 1),
        ({"tensor": 2, "weight": 2, "zero1": 8}, 1),
        ({"tensor": 2, "pipeline": {"size": 2, "mode": "ZBH1", "interleaved_overlap": True}}, 2),
        ({"tensor": 2, "pipeline": 4, "zero1": {"fsdp": True}}, 4),
    ],
)
def test_inference_takes_the_sizes_alone_of_a_layout_of_training(tmp_path: Path, parallel: Any, pipeline: int) -> None:
    file = tmp_path / "job.yaml"
    model = MODEL | {"num_chunks": 2}  # with 4 stages of 4 layers no chunks are left
    file.write_text(json.dumps({"model": model, "data": {"micro_num": 3}, "parallel": parallel}))
    inference = load_config(file, inference=True)
    assert inference.parallel == job({"parallel": {"tensor": 2, "pipeline": pipeline}}).parallel
    assert inference.model.num_chunks == 1
    with pytest.raises(ConfigError, match='tensr: unknown key; did you mean "tensor"'):
        load_config(file, ["parallel.tensr=2"], inference=True)
    for key in ("parallel.pipeline.interleaved_overlp", "parallel.tensor.interleaved_overlap"):
        with pytest.raises(ConfigError, match=rf"{key}: (unknown key|is a value)"):
            load_config(file, [f"{key.rpartition('.')[0]}={{size: 2, {key.rpartition('.')[2]}: true}}"], inference=True)
