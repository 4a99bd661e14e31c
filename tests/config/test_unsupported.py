"""What this version refuses, and what it names as without effect."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from evo_core.config import TrainConfig
from evo_core.config.fields import leaves
from evo_core.config.unsupported import EFFECTLESS, REFUSALS
from tests.config.jobs import at, job, refusal

REFUSED = {
    "output_tf32": at("output_tf32", True),
    "data.train_folder": at(
        "data", {"type": "hf", "train_folder": "s3://b/x", "tokenizer_path": "x", "pack_sample_into_one": False}
    ),
    "model.is_reward": at("model.is_reward", True),
}


def test_each_refusal_is_tried() -> None:
    assert REFUSED.keys() == {refusal.key for refusal in REFUSALS}


@pytest.mark.parametrize("key", REFUSED)
def test_refused(key: str) -> None:
    lines = refusal(REFUSED[key]).splitlines()
    assert len([line for line in lines if line.startswith(f"{key}: ") and "this version" in line]) == 1


def test_a_refusal_is_one_clear_sentence() -> None:
    assert refusal(REFUSED["output_tf32"]) == (
        "output_tf32: true: this version computes the head in model.dtype, like the rest (set it to false; with "
        "model.dtype: torch.tf32 the head is computed so too)"
    )


@pytest.mark.parametrize(
    "changes",
    [
        at("ckpt.save_ckpt_folder", "boto3:s3://bucket.ip/x"),
        at("ckpt.load_ckpt_info", {"path": "internlm/internlm-7b", "content": "model", "ckpt_type": "hf_model"}),
        at("ckpt", {"auto_resume": False, "load_ckpt_info": {"path": "s3://bucket/x"}}),
        {"tensorboard_folder": "s3://b/x", "data": {"train_folder": "boto3:s3://b.ip/x", "valid_folder": "s3://b/x"}},
        at("generation", {"ckpt_folder": "s3://b/x", "data_folder": "s3://b/x", "output_folder": "s3://b/x"}),
        {"output_tf32": True, "model": {"dtype": "tf32"}},
        at("data.use_shm", True),
        at("parallel.tensor", {"size": 1, "mode": "isp"}),
        at("parallel.tensor", 2),
        at("parallel.tensor", {"size": 2, "mode": "msp"}),
        at("parallel.tensor", {"size": 2, "mode": "fsp"}),
        at("parallel.pipeline", 2),
        at("model.num_chunks", 2),
        at("monitor.alert", {"enable_feishu_alert": False, "feishu_alert_address": "https://x"}),
        at("data.train_folder", "data/train"),
        at("data.tokenizer_path", "internlm/internlm-7b"),
        at("data.type_weights", {"cn": 1, "en": "1/2"}),
        at("ckpt", {"auto_resume": False, "load_ckpt_info": {"path": "internlm/internlm-7b"}}),
    ],
)
def test_not_refused_where_nothing_would_change(changes: dict[str, Any]) -> None:
    job(changes)


def test_only_what_was_set_is_named() -> None:
    assert job().settings_without_effect("cpu") == []
    config = job({"parallel": {"weight": {"overlap": True, "memory_pool": False}}, "cudnn_benchmark": True})
    assert config.settings_without_effect("cpu") == [
        "parallel.weight.overlap (weight.size is 1)",
        "cudnn_benchmark (there is no cuDNN on a CPU)",
    ]
    assert config.settings_without_effect("cuda") == ["parallel.weight.overlap (weight.size is 1)"]
    shared = job(at("data", {"use_shm": True, "shm_path": "/x", "train_folder": "/data", "num_worker": 2}))
    assert shared.settings_without_effect("cpu") == []
    random = job(at("data", {"use_shm": True, "shm_path": "/x", "text_key": "text"}))
    assert random.settings_without_effect("cpu") == [
        "data.shm_path (no index is kept in shared memory)",
        "data.use_shm (random data has no index)",
        "data.text_key (it is for Hugging Face data sets)",
    ]
    for ckpt, why in (
        ({"checkpoint_every": 10, "keep": 1}, []),
        ({"checkpoint_every": 10}, ["without keep all checkpoints stay"]),
        ({"keep": 1}, ["checkpoint_every is .inf"]),
        ({"keep": 1, "enable_save_ckpt": False}, ["nothing is saved"]),
    ):
        saved = job({"ckpt": {"save_ckpt_folder": "local:x", "keep_every": 20} | ckpt})
        assert saved.settings_without_effect("cpu") == [f"ckpt.keep_every ({one})" for one in why]
    rate = {"eta_min": 0, "decay_ratio": 0.2, "decay_type": "sqrt"}
    for kind, why in (
        ("cosine", ["decay_ratio (lr_scheduler.kind is not wsd)", "decay_type (lr_scheduler.kind is not wsd)"]),
        ("wsd", []),
        (
            "constant",
            [
                "eta_min (lr_scheduler.kind is constant)",
                "decay_ratio (lr_scheduler.kind is not wsd)",
                "decay_type (lr_scheduler.kind is not wsd)",
            ],
        ),
    ):
        named = job({"lr_scheduler": rate | {"kind": kind}}).settings_without_effect("cpu")
        assert named == [f"lr_scheduler.{one}" for one in why]
    stated = {"adam": {"adam_beta2": 0.9}, "beta2_scheduler": {"init_beta2": 0.95, "c": 0}}
    assert job(stated).settings_without_effect("cpu") == ["adam.adam_beta2 (beta2_scheduler.init_beta2 goes before it)"]
    assert job({"adam": {"adam_beta2": 0.9, "adam_beta2_c": 0.8}}).settings_without_effect("cpu") == []
    assert job({"moe": {"top_k": 2}}).settings_without_effect("cuda") == ["moe.top_k (num_experts is 1)"]


def test_what_a_router_does_not_read_is_named() -> None:
    moe: dict[str, Any] = {"capacity_factor": 2, "use_rts": True, "noisy_gate_policy": "RSample"}

    def named(**changes: Any) -> list[str]:
        model = {"num_experts": 4} | changes.pop("model", {})
        return job({"model_type": "INTERNLM_MoE", "model": model, "moe": moe | changes}).settings_without_effect("cuda")

    assert named() == []
    assert named(top_k=2) == ["moe.use_rts (with top_k 2 tokens are taken in order)"]
    assert named(drop_tokens=False) == [
        "moe.capacity_factor (drop_tokens is false)",
        "moe.use_rts (drop_tokens is false)",
    ]
    assert named(top_k=3, model={"moe_type": "MegaBlock"}) == [
        "moe.capacity_factor (moe_type MegaBlock drops no token)",
        "moe.use_rts (moe_type MegaBlock drops no token)",
        "moe.noisy_gate_policy (only the GShard router has noise)",
    ]


def test_the_tables_name_settings_that_exist() -> None:
    known = {leaf.key for leaf in leaves(TrainConfig)}
    assert {row.key for row in REFUSALS} <= known
    assert {row.key for row in EFFECTLESS} <= known


DERIVED = {
    "data.rampup_batch_size": "data.rampup",
    "data.skip_batches": "data.skips",
    "model.multiple_of": "model.mlp_hidden_size",
    "adam.adam_beta2": "beta2_scheduler.init_beta2",
    "adam.adam_beta2_c": "beta2_scheduler.c",
    "data.micro_num": "cfg.micro_num",
    "data.global_batch_tokens": "cfg.micro_num",
    "monitor.alert.enable_feishu_alert": "alert.addresses",
    "monitor.alert.feishu_alert_address": "alert.addresses",
    "monitor.alert.webhooks": "alert.addresses",
    "monitor.stuck_after": "monitor.stuck_after",
}
"""Settings that are read through another: a property, a method, or the default of another setting."""


def test_no_setting_is_ignored() -> None:
    """Every setting is read somewhere, refused, or named as without effect."""
    core = Path(__file__).parents[2] / "evo_core"
    sources = [path.read_text(encoding="utf-8") for path in core.rglob("*.py") if core / "config" not in path.parents]
    read = {name for source in sources for name in re.findall(r"\.(\w+)", source)}
    listed = {row.key for row in REFUSALS} | {row.key for row in EFFECTLESS}
    ignored = [
        leaf.key
        for leaf in leaves(TrainConfig)
        if leaf.mark != "copied"
        and leaf.key not in listed
        and DERIVED.get(leaf.key, leaf.key).rpartition(".")[2] not in read
        and not leaf.key.startswith("generation.")  # the whole block is handed over
        and leaf.key not in ("metric_dtype", "model.rope_scaling.rope_type")  # they have one value
    ]
    assert ignored == []
