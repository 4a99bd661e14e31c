"""The schema: every setting says what it is, and every mistake is answered with the key and what is right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evo_core.config import ConfigErrors, TrainConfig, load_config, suggest
from evo_core.config.fields import NEVER, Block, block_type, leaves
from evo_core.errors import ConfigError
from tests.config.jobs import CONFIGS, JOBS, MODEL, at, job, refusal

SHIPPED_FILES = [*JOBS, *sorted(CONFIGS.glob("models/*"))]


def blocks(kind: type[Block]) -> list[type[Block]]:
    """A block and all blocks inside it."""
    inner = [block_type(field) for field in kind.model_fields.values()]
    return [kind, *(found for one in inner if one is not None for found in blocks(one))]


def test_every_setting_is_marked_identity_or_execution_and_documented() -> None:
    for leaf in leaves(TrainConfig):
        assert leaf.mark in ("identity", "execution", "copied"), f"{leaf.key} is not marked"
        assert leaf.field.description, f"{leaf.key} is not documented"
    for kind in blocks(TrainConfig):
        assert kind.__doc__
        assert kind.__doc__ != Block.__doc__, kind
        for field in kind.model_fields.values():
            assert isinstance(field.json_schema_extra, dict)
            expected = ("block", "copied") if block_type(field) is not None else ("identity", "execution", "copied")
            assert field.json_schema_extra["mark"] in expected


def test_a_setting_that_came_later_came_with_its_default() -> None:
    for leaf in leaves(TrainConfig):
        if leaf.key.startswith("model.rope_scaling."):  # the block came later, as None
            assert leaf.introduced is None
        elif leaf.introduced is not NEVER and not callable(leaf.introduced):
            assert leaf.introduced == leaf.field.default, leaf.key


def test_a_head_is_as_wide_as_usual_where_nothing_is_stated() -> None:
    usual, stated, wider = job(), job({"model": {"head_dim": 16}}), job({"model": {"head_dim": 32}})
    assert (usual.model.head_dim, stated.model.head_dim, wider.model.head_dim) == (16, 16, 32)
    assert "head_dim" not in usual.identity(1)["model"]
    assert stated.identity(1) == usual.identity(1)
    assert wider.identity(1)["model"]["head_dim"] == 32
    assert TrainConfig.model_validate(usual.to_plain()) == usual


def test_the_moe_block_is_handed_to_the_model() -> None:
    config = job({"moe": {"min_capacity": 7}})
    assert config.model.moe is config.moe
    assert "moe" not in config.to_plain()["model"]
    assert "moe" not in config.identity(1)["model"]
    assert config.identity(1)["moe"] == {"min_capacity": 7}
    message = "model.moe: is a block of its own (state it at the top level)"
    with pytest.raises(ConfigError, match=re.escape(message)):
        job({"model": {"moe": {"top_k": 2}}})


def test_an_unmarked_setting_would_be_found() -> None:
    class Careless(Block):
        lr: float = 1.0

    assert [leaf.mark for leaf in leaves(Careless)] == [None]


def test_importing_the_configuration_is_light() -> None:
    code = """
import sys
import evo_core.config
heavy = {"torch", "numpy", "omegaconf", "prefect", "s3fs", "boto3", "transformers"} & set(sys.modules)
assert not heavy, heavy
from evo_core.config import load_config
load_config(sys.argv[1]).check_world(2)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(CONFIGS / "train" / "demo.yaml")], check=True)


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda p: p.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    config = load_config(path)
    config.check_world({"demo.yaml": 2, "70b.yaml": 64}.get(path.name, 8))
    if path.suffix == ".yaml" and path.parent.name == "train":
        of_the_model = "model.max_position_embeddings ("  # which a file of configs/models says for generation
        assert [line for line in config.settings_without_effect("cuda") if not line.startswith(of_the_model)] == []


@pytest.mark.parametrize(
    ("name", "model_type", "width", "parameters"),
    [
        ("internlm_7b", "INTERNLM", 11008, 7_321_948_160),
        ("internlm_20b", "INTERNLM", 13824, None),
        ("internlm2_1_8b", "INTERNLM2_PUBLIC", 8192, None),
        ("internlm2_7b", "INTERNLM2_PUBLIC", 14336, None),
        ("internlm2_20b", "INTERNLM2_PUBLIC", 16384, None),
        ("llama2_7b", "LLAMA2", 11008, 6_738_415_616),
    ],
)
def test_published_shapes(name: str, model_type: str, width: int, parameters: int | None) -> None:
    model = load_config(CONFIGS / "models" / f"{name}.yaml").model
    assert (model.model_type, model.mlp_hidden_size, model.head_dim) == (model_type, width, 128)
    if parameters is not None:
        kv = model.head_dim * model.num_kv_attention_heads
        biases = 0 if model.no_bias else 2 * model.hidden_size + 2 * kv
        attention = 2 * model.hidden_size**2 + 2 * model.hidden_size * kv + biases
        block = attention + 3 * model.hidden_size * width + 2 * model.hidden_size
        total = 2 * model.vocab_size * model.hidden_size + model.num_layers * block + model.hidden_size
        assert total == parameters


def test_defaults() -> None:
    config = job()
    data = config.data
    assert (data.seq_len, data.micro_num, data.micro_bsz, data.total_steps) == (2048, 1, 1, 50000)
    assert (data.valid_every, data.min_length, data.train_folder) == (0, 0, None)
    scaler = config.grad_scaler
    assert (scaler.fp16.initial_scale, scaler.fp16.min_scale, scaler.max_scale) == (65536, None, None)
    assert (scaler.growth_factor, scaler.backoff_factor, scaler.hysteresis) == (2, 0.5, 2)
    assert scaler.fp16.growth_interval == 1000
    assert config.ckpt.checkpoint_every == float("inf")
    assert (config.ckpt.enable_save_ckpt, config.ckpt.auto_resume, config.ckpt.keep) == (True, True, None)
    assert (config.seed, config.job_name, config.model_type) == (1024, "AnonymousJob", "INTERNLM")
    assert (config.generation.max_length, config.generation.top_k, config.generation.do_sample) == (100, 50, True)


@pytest.mark.parametrize("value", [0, 1, 0.5, -3, None, False, True, int(1 / 2), "1/2", ".inf", float("inf")])
def test_snapshots_only_where_there_are_steps_between_them(value: Any) -> None:
    """As in InternEvo, whose configs write int(CHECKPOINT_EVERY/2)."""
    config = job({"ckpt": {"oss_snapshot_freq": value}})
    assert config.ckpt.oss_snapshot_freq == float("inf")
    assert job({"ckpt": {"oss_snapshot_freq": 2}}).ckpt.oss_snapshot_freq == 2


def test_saving_that_was_not_asked_for_needs_no_folder(tmp_path: Path) -> None:
    """And what was read is written so that it can be read again."""
    for ckpt in ({}, {"enable_save_ckpt": False}, {"enable_save_ckpt": False, "save_ckpt_folder": ""}):
        (tmp_path / "again.yaml").write_text(job({"ckpt": ckpt}).to_yaml())
        assert load_config(tmp_path / "again.yaml").ckpt == job({"ckpt": ckpt}).ckpt


def test_defaults_that_follow_other_settings() -> None:
    config = job({"data": {"total_steps": "2*100"}, "adam": {"adam_beta2": 0.9, "adam_beta2_c": 0.8}})
    assert config.lr_scheduler.total_steps == 200
    assert (config.beta2_scheduler.init_beta2, config.beta2_scheduler.c) == (0.9, 0.8)
    config = job({"model_type": "LLAMA2", "use_fp32_norm": True})
    assert (config.model.model_type, config.model.use_fp32_norm) == ("LLAMA2", True)
    assert (config.model.num_kv_attention_heads, config.model.qk_interleaved) == (4, True)
    assert config.model.embedding_init_std == 0.02
    assert (job().model.embedding_init_std, job().model.attn_wqkv_init_std) == (0.0052, 0.006)
    assert job({"adam": {"adam_beta2": 0.9}, "beta2_scheduler": {"init_beta2": 0.8}}).beta2_scheduler.init_beta2 == 0.8


@pytest.mark.parametrize(
    ("key", "given", "taken"),
    [
        ("model.mlp_ratio", "8/3", 8 / 3),
        ("hybrid_zero_optimizer.reduce_bucket_size", "512*1024*1024", 2**29),
        ("adam.lr", "1e-4", 1e-4),
        ("data.seq_len", "8/2", 4),
        ("data.seq_len", 1e3, 1000),
        ("ckpt.checkpoint_every", ".inf", float("inf")),
        ("ckpt.checkpoint_every", float("inf"), float("inf")),
        ("ckpt.checkpoint_every", 50, 50),
        ("model.checkpoint", True, 1.0),
        ("model.checkpoint", "1/4", 0.25),
        ("model.dtype", "half", "torch.float16"),
        ("model.dtype", "bfloat16", "torch.bfloat16"),
        ("model.dtype", "torch.tf32", "torch.tf32"),
        ("model.adapt_hf", None, None),
        ("data.rampup_batch_size", None, ""),
        ("data.skip_batches", " 1-3,7 ", "1-3,7"),
        ("loss.label_smoothing", None, 0.0),
        ("ckpt.load_ckpt_info", {"path": "local:x", "content": "model"}, None),
        ("generation.eos_id", [2, 0], [2, 0]),
    ],
)
def test_forms_of_values(key: str, given: Any, taken: Any) -> None:
    if key == "model.adapt_hf":
        assert job(at(key, False)).model.qk_interleaved is True
        return
    value: Any = job(at(key, given))
    for name in key.split("."):
        value = getattr(value, name)
    if key == "ckpt.load_ckpt_info":
        assert (value.content, value.ckpt_type) == (("model",), "internevo")
    else:
        assert value == taken
        assert type(value) is type(taken)


def test_numbers_in_place_of_blocks_and_internevos_place_of_tensorboard() -> None:
    config = job({"parallel": {"zero1": 4, "tensor": 1, "pipeline": 1}, "tensorboard": {"queue_max_length": 7}})
    assert config.parallel.zero1.size == 4
    assert config.monitor.tensorboard.queue_max_length == 7
    assert job({"parallel": {"zero1": None}, "ckpt": None}) == job()


def test_batch_schedule_texts() -> None:
    data = job({"data": {"micro_num": 8, "rampup_batch_size": "2 3 100", "skip_batches": "3,10-12"}}).data
    assert data.rampup == (2, 3, 100)
    assert data.skip_ranges == ((3, 3), (10, 12))
    assert [step for step in range(15) if data.skips(step)] == [3, 10, 11, 12]


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        job().adam.lr = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": {}}, 'modle: unknown key; did you mean "model"?'),
        ({"adam": {"beta2": 1}}, 'adam.beta2: unknown key; did you mean "adam_beta2"?'),
        ({"lr": 1}, 'lr: unknown key; did you mean "adam.lr"?'),
        ({"zzz": 1}, "zzz: unknown key"),
        (
            at("data.packed_length", 4),
            "data.packed_length: unknown key (it is always seq_len * micro_bsz: leave it out)",
        ),
        (at("model.dtype", "bf16"), 'model.dtype: must be "torch.bfloat16", "torch.float16"'),
        (at("model.norm_type", "rmsnrm"), 'must be "rmsnorm" or "layernorm", not "rmsnrm"; did you mean "rmsnorm"?'),
        (at("data.seq_len", 2.5), "data.seq_len: must be a whole number, not 2.5"),
        (at("data.seq_len", True), "data.seq_len: must be a number, not true"),
        (at("data.seq_len", 0), "data.seq_len: must be at least 1, not 0"),
        (at("data.seq_len", None), "data.seq_len: must be a number, not null"),
        (at("data.seq_len", [1]), "data.seq_len: must be a number, not [1]"),
        (at("adam.lr", "os.system('x')"), "adam.lr: \"os.system('x')\" is not a number"),
        (at("adam.lr", float("nan")), "adam.lr: must be a finite number, not .nan"),
        (at("adam.lr", ".inf"), "adam.lr: must be a finite number"),
        (at("adam.lr", 0), "adam.lr: must be greater than 0, not 0"),
        (at("adam.adam_beta1", 1), "adam.adam_beta1: must be below 1"),
        (at("data", 3), "data: must be a block of keys, not 3"),
        (at("enable_tb", "maybe"), 'enable_tb: must be true or false, not "maybe"'),
        (at("job_name", 3), "job_name: must be text, not 3"),
        (at("ckpt.checkpoint_every", 0), "ckpt.checkpoint_every: must be at least 1 step, or .inf for never, not 0"),
        (at("ckpt.checkpoint_every", 1.5), "ckpt.checkpoint_every: must be a whole number"),
        (at("model.checkpoint", 1.5), "model.checkpoint: must be true, false or a share between 0 and 1, not 1.5"),
        (at("data.rampup_batch_size", "1 2"), "data.rampup_batch_size: must be three numbers"),
        (at("data.rampup_batch_size", "0 1 1"), "data.rampup_batch_size: must be three numbers"),
        (at("data.skip_batches", "5-3"), 'data.skip_batches: "5-3" does not ascend'),
        (at("data.skip_batches", "3,2"), 'data.skip_batches: "2" does not ascend'),
        (at("data.skip_batches", "a"), 'data.skip_batches: "a" is neither a step nor a range'),
        (at("grad_scaler.growth_factor", 1), "grad_scaler.growth_factor: must be greater than 1"),
        (at("grad_scaler.backoff_factor", 1), "grad_scaler.backoff_factor: must be between 0 and 1"),
        (at("ckpt.load_ckpt_info", {"content": "model"}), "ckpt.load_ckpt_info.path: is required"),
        (at("ckpt.load_ckpt_info", {"path": "x", "content": ["modle"]}), "must be"),
        (at("generation.eos_id", "end"), "generation.eos_id: "),
        (at("generation.prompts", 3), "generation.prompts: must be text, not 3"),
        (at("model_type", "INTERNLM3"), "unknown model type"),
        (at("ckpt.enable_save_ckpt", True), "ckpt.save_ckpt_folder: names no folder, and enable_save_ckpt is true"),
        (at("ckpt", {"enable_save_ckpt": True, "save_ckpt_folder": None}), "ckpt.save_ckpt_folder: names no folder"),
        (at("ckpt.save_ckpt_folder", ""), "ckpt.save_ckpt_folder: names no folder"),
        (at("ckpt.save_ckpt_folder", "local: "), "ckpt.save_ckpt_folder: names no folder"),
        (at("ckpt.oss_snapshot_freq", 1.5), "ckpt.oss_snapshot_freq: must be a whole number"),
        (at("ckpt.oss_snapshot_freq", float("nan")), "ckpt.oss_snapshot_freq: must be a finite number"),
        (at("ckpt.oss_snapshot_freq", "often"), "ckpt.oss_snapshot_freq: "),
        ({"model": {"adapt_hf": True, "qk_interleaved": True}}, "model: adapt_hf and qk_interleaved contradict"),
    ],
)
def test_mistakes_are_answered(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(changes)


def test_what_is_required_is_said() -> None:
    with pytest.raises(ConfigErrors) as caught:
        TrainConfig.model_validate({"model": {}})
    assert str(caught.value).splitlines() == [
        f"model.{name}: is required" for name in ("num_layers", "hidden_size", "num_attention_heads", "vocab_size")
    ]


def test_all_mistakes_of_a_file_are_reported_in_the_order_of_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"modle: 1\nmodel: {MODEL}\ndata:\n  seq_len: x\nadam:\n  lrr: 1\n  lr: 0\n")
    with pytest.raises(ConfigErrors) as caught:
        load_config(path)
    assert str(caught.value).splitlines() == [
        f'{path}:1: modle: unknown key; did you mean "model"?',
        f'{path}:4: data.seq_len: "x" is not a number (numbers and + - * / // ** only)',
        f'{path}:6: adam.lrr: unknown key; did you mean "lr"?',
        f"{path}:7: adam.lr: must be greater than 0, not 0",
    ]


def test_errors_travel_between_processes() -> None:
    import pickle

    with pytest.raises(ConfigErrors) as caught:
        TrainConfig.model_validate({"model": None})
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert isinstance(pickle.loads(pickle.dumps(ConfigError("x", key="k"))), ConfigError)


def test_suggestions() -> None:
    assert suggest("adam_beta_2", ["adam_beta1", "adam_beta2", "lr"]) == '; did you mean "adam_beta2"?'
    assert suggest("internlm2_publik", ["INTERNLM", "INTERNLM2_PUBLIC"]) == '; did you mean "INTERNLM2_PUBLIC"?'
    assert suggest("zzz", ["adam"]) == ""
