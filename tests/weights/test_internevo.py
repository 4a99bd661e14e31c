"""InternEvo's folders, merged from shards that internevo_files.py cuts, and written for one rank."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evo_core.convert.command import main as convert
from evo_core.errors import CheckpointError
from evo_core.model import Decoder
from evo_core.weights import build, kind_of, open_weights, write_weights
from evo_core.weights.pickles import read_tensors
from tests.weights.internevo_files import (
    part,
    tensor_shard,
    write_isp,
    write_later_isp,
    write_model_config,
    write_tensor_parallel,
)
from tests.weights.models import SHAPES, model, same, weights

SIZES: dict[str, Any] = {"vocab_size": 64, "mlp_ratio": 3.0}
"""Sizes that divide over 4 ranks; half an MLP is not as wide as the model, so that its shapes tell w2 from w3."""


def stated(made: Decoder, **settings: Any) -> dict[str, Any]:
    """What model_config.pt says of a model."""
    cfg = made.cfg
    names = ("num_attention_heads", "vocab_size", "hidden_size", "num_layers", "mlp_ratio", "no_bias", "norm_type")
    own = {name: getattr(cfg, name) for name in names}
    own |= {"layer_norm_epsilon": cfg.layer_norm_epsilon, "num_chunks": 2, "parallel_output": True, "checkpoint": False}
    if cfg.model_type not in ("INTERNLM", "INTERNLM_MoE"):
        own |= {"num_kv_attention_heads": cfg.num_kv_attention_heads, "adapt_hf": not cfg.qk_interleaved}
    return own | {"multiple_of": cfg.multiple_of} | settings


@pytest.mark.parametrize("model_type", ["INTERNLM", "INTERNLM2_PUBLIC", "LLAMA2", "INTERNLM_MoE"])
@pytest.mark.parametrize(("tensor", "pipeline", "chunks"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1), (2, 2, 2)])
def test_shards_are_merged(tmp_path: Path, model_type: str, tensor: int, pipeline: int, chunks: int) -> None:
    layers = 4 if chunks == 2 else 3
    made = model(model_type, num_layers=layers, **SIZES)
    write_tensor_parallel(made.state_dict(), tmp_path / "8", layers, tensor=tensor, pipeline=pipeline, chunks=chunks)
    write_model_config(tmp_path / "8", stated(made))
    found = open_weights(tmp_path / "8", model=made.cfg)
    assert (found.kind, found.model.model_type) == ("internevo", model_type)
    assert same(build(found), made)
    assert found.model.qk_interleaved == (model_type == "LLAMA2")


@pytest.mark.parametrize("model_type", ["INTERNLM", "INTERNLM2_PUBLIC", "LLAMA2"])
@pytest.mark.parametrize(("tensor", "weight", "pipeline"), [(2, 4, 1), (4, 2, 2), (1, 2, 1), (2, 1, 1)])
def test_isp_shards_are_merged(tmp_path: Path, model_type: str, tensor: int, weight: int, pipeline: int) -> None:
    made = model(model_type, num_layers=3, **SIZES)
    write_isp(made.state_dict(), tmp_path / "8", 3, tensor=tensor, weight=weight, pipeline=pipeline)
    write_model_config(tmp_path / "8", stated(made))
    assert same(build(open_weights(tmp_path / "8")), made)


@pytest.mark.parametrize("model_type", ["INTERNLM", "INTERNLM2_PUBLIC", "LLAMA2", "INTERNLM_MoE"])
@pytest.mark.parametrize(("weight", "pipeline"), [(1, 1), (4, 1), (2, 2)])
def test_isp_shards_of_later_versions_are_merged(tmp_path: Path, model_type: str, weight: int, pipeline: int) -> None:
    made = model(model_type, num_layers=3, **SIZES)
    write_later_isp(made.state_dict(), tmp_path / "8", 3, weight=weight, pipeline=pipeline)
    write_model_config(tmp_path / "8", stated(made))
    (tmp_path / "8" / "8.step").write_text("")
    for folder in (tmp_path, tmp_path / "8"):
        found = open_weights(folder, model=made.cfg)
        assert (found.kind, found.folder) == ("internevo", tmp_path / "8")
        assert same(build(found), made)


def test_missing_isp_files_are_named(tmp_path: Path) -> None:
    made = model("INTERNLM", num_layers=3, **SIZES)
    for folder in (tmp_path / "both", tmp_path / "later"):
        write_isp(made.state_dict(), tmp_path / "both", 3, tensor=2, weight=4, pipeline=2)
        write_later_isp(made.state_dict(), tmp_path / "later", 3, weight=4, pipeline=2)
        write_model_config(folder, stated(made))
    (tmp_path / "both" / "model_tp0_wp2_pp0.pt").unlink()
    (tmp_path / "later" / "model_wp0_pp1.pt").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model_tp0_wp2_pp0\.pt"):
        open_weights(tmp_path / "both")
    with pytest.raises(CheckpointError, match=r"has no model file of wp0"):
        open_weights(tmp_path / "later")


def test_files_of_two_layouts_are_of_two_runs(tmp_path: Path) -> None:
    made = model("INTERNLM", **SIZES)
    write_later_isp(made.state_dict(), tmp_path, 2, weight=2, pipeline=1)
    write_tensor_parallel(made.state_dict(), tmp_path, 2, tensor=2, pipeline=1)
    write_model_config(tmp_path, stated(made))
    with pytest.raises(CheckpointError, match=r"weights of two runs: model_[tw]p0_pp0\.pt and model_[tw]p[01]_pp0\.pt"):
        open_weights(tmp_path)


@pytest.mark.parametrize("tensor", [1, 2])
def test_files_from_before_version_0_3(tmp_path: Path, tensor: int) -> None:
    """Names begin with "model.", and w2 is up and w3 down."""
    made = model("INTERNLM", **SIZES)
    swapped = {".w2.": ".w3.", ".w3.": ".w2."}
    old = {}
    for name, whole in made.state_dict().items():
        layer = next((layer for layer in swapped if layer in name), "")
        old[name.replace(layer, swapped[layer]) if layer else name] = whole
    (tmp_path / "8").mkdir()
    for rank in range(tensor):
        content = {}
        for name, whole in old.items():
            if ".w2." in name:
                shard: torch.Tensor | None = part(whole, rank, tensor)  # up
            elif ".w3." in name:
                shard = part(whole, rank, tensor, dim=1)  # down
            else:
                shard = tensor_shard(name, whole, rank, tensor)
            if shard is not None:
                content[f"model.{name}"] = shard
        torch.save(content, tmp_path / "8" / f"model_tp{rank}_pp0.pt")
    write_model_config(tmp_path / "8", stated(made))
    assert same(build(open_weights(tmp_path / "8")), made)


def test_square_shards_are_taken_in_the_present_order_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = model("INTERNLM", **SIZES | {"mlp_ratio": 2.0})
    write_tensor_parallel(made.state_dict(), tmp_path / "8", 2, tensor=2, pipeline=1)
    write_model_config(tmp_path / "8", stated(made))
    with caplog.at_level(logging.WARNING):
        assert same(build(open_weights(tmp_path / "8")), made)
    assert sum("do not tell w2 from w3" in record.getMessage() for record in caplog.records) == 1


def test_a_vocabulary_parallel_embedding(tmp_path: Path) -> None:
    made = model("INTERNLM", **SIZES)
    write_tensor_parallel(made.state_dict(), tmp_path / "8", 2, tensor=2, pipeline=1)
    write_model_config(tmp_path / "8", stated(made))
    for rank in range(2):
        file = tmp_path / "8" / f"model_tp{rank}_pp0.pt"
        state = torch.load(file)
        del state["embedding.weight"]
        state["embedding.word_embeddings.weight"] = made.state_dict()["embedding.weight"][32 * rank : 32 * rank + 32]
        state["blocks.0.mixer.rotary_emb.inv_freq"] = torch.ones(4)
        torch.save(state, file)
    assert same(build(open_weights(tmp_path / "8")), made)


def test_norms_kept_in_float32(tmp_path: Path) -> None:
    made = model("INTERNLM", use_fp32_norm=True, dtype="bfloat16", **SIZES)
    write_tensor_parallel(made.state_dict(), tmp_path / "8", 2, tensor=2, pipeline=1)
    write_model_config(tmp_path / "8", stated(made))
    found = open_weights(tmp_path / "8")
    assert found.config.use_fp32_norm
    assert same(build(found), made)


def test_a_save_folder_means_its_newest_complete_checkpoint(tmp_path: Path) -> None:
    for step, complete in ((4, True), (12, True), (20, False)):
        made = model("INTERNLM", seed=step, **SIZES)
        folder = tmp_path / str(step)
        write_tensor_parallel(made.state_dict(), folder, 2, tensor=1, pipeline=1)
        write_model_config(folder, stated(made))
        if complete:
            (folder / f"{step}.step").write_text("")
    assert kind_of(tmp_path) == "internevo"
    found = open_weights(tmp_path)
    assert found.folder == tmp_path / "12"
    assert same(build(found), model("INTERNLM", seed=12, **SIZES))


def test_without_model_config_the_shape_must_be_said(tmp_path: Path) -> None:
    made = model("INTERNLM2_PUBLIC", **SIZES)
    write_tensor_parallel(made.state_dict(), tmp_path, 2, tensor=2, pipeline=1)
    with pytest.raises(CheckpointError, match=r"has no model_config\.pt.*--config FILE"):
        open_weights(tmp_path)
    assert same(build(open_weights(tmp_path, model=made.cfg)), made)


def test_missing_files_are_named(tmp_path: Path) -> None:
    made = model("INTERNLM", num_layers=3, **SIZES)
    write_tensor_parallel(made.state_dict(), tmp_path, 3, tensor=2, pipeline=2)
    write_model_config(tmp_path, stated(made))
    content = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for gone, problem in (
        ("model_tp1_pp0.pt", r"lacks model_tp1_pp0\.pt"),
        ("model_tp0_pp1.pt", r"has no model file of tp0"),
        ("model_tp1_pp1.pt", r"has the shapes blocks\.1\.mixer\.Wqkv\.weight \[48, 32\] in place of \[96, 32\]"),
    ):
        (tmp_path / gone).unlink()
        with pytest.raises(CheckpointError, match=problem):
            open_weights(tmp_path)
        (tmp_path / gone).write_bytes(content[tmp_path / gone])
    for rank in range(2):
        (tmp_path / f"model_tp{rank}_pp1.pt").unlink()
    with pytest.raises(CheckpointError, match="not all pipeline stages are there"):
        open_weights(tmp_path)


def test_a_tensor_that_one_rank_lacks(tmp_path: Path) -> None:
    made = model("INTERNLM", **SIZES)
    write_tensor_parallel(made.state_dict(), tmp_path, 2, tensor=2, pipeline=1)
    write_model_config(tmp_path, stated(made))
    state = torch.load(tmp_path / "model_tp1_pp0.pt")
    del state["blocks.1.mlp.w1.weight"]
    torch.save(state, tmp_path / "model_tp1_pp0.pt")
    with pytest.raises(CheckpointError, match=r"model_tp1_pp0\.pt: lacks blocks\.1\.mlp\.w1\.weight"):
        open_weights(tmp_path)


def test_fsdp_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model_tp0_pp0_dp0.pt")
    with pytest.raises(CheckpointError, match="written with fsdp, which cannot be merged"):
        open_weights(tmp_path)


def test_files_of_names_that_are_not_known_are_refused(tmp_path: Path) -> None:
    """A save folder is known by its marker, whatever the files beside it are called."""
    (tmp_path / "20").mkdir()
    (tmp_path / "20" / "20.step").write_text("")
    torch.save({}, tmp_path / "20" / "model_pp0.pt")
    with pytest.raises(CheckpointError, match=r"20: holds no file model_tp<t>_pp<p>\.pt, .* or model_wp<w>_pp<p>\.pt"):
        open_weights(tmp_path)


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    made = model("INTERNLM", **SIZES)
    write_tensor_parallel(made.state_dict(), tmp_path, 2, tensor=1, pipeline=1)

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"num_layers": 2, "x": Evil()}, tmp_path / "model_config.pt")
    with pytest.raises(CheckpointError, match=r"model_config\.pt: cannot be read as plain settings: it names "):
        open_weights(tmp_path)
    (tmp_path / "model_config.pt").write_bytes(pickle.dumps({"num_layers": 2}))
    with pytest.raises(CheckpointError, match=r"model_config\.pt: cannot be read as plain settings"):
        open_weights(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_old_files_with_numpy_values(tmp_path: Path) -> None:
    state = {"a": torch.ones(3), "rng": np.random.RandomState(1).get_state(), "loss": np.float64(2.0)}
    torch.save(state, tmp_path / "new.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("new.pt", "old.pt"):
        found = read_tensors(tmp_path / name)
        assert found.keys() == {"a"}
        assert torch.equal(found["a"].read(), torch.ones(3))


@pytest.mark.parametrize("model_type", ["INTERNLM", "INTERNLM2_PUBLIC", "LLAMA2", "INTERNLM_MoE"])
def test_what_is_written_has_internevos_names_and_shapes(tmp_path: Path, model_type: str) -> None:
    made = model(model_type, **SIZES)
    write_weights(weights(made), tmp_path / "theirs", "internevo")
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    experts = {f"model_moe_layer{layer}_expert{e}_tp0.pt" for layer in range(2) for e in range(4)}
    moe = model_type == "INTERNLM_MoE"
    assert names == {"model_tp0_pp0.pt", "model_config.pt"} | (experts if moe else set())
    state = torch.load(tmp_path / "theirs" / "model_tp0_pp0.pt", weights_only=True)
    h, v, f = 32, 64, 96
    block = "blocks.1." if model_type.startswith("INTERNLM_") or model_type == "INTERNLM" else "layers.1."
    wanted = {
        "INTERNLM": {"mixer.Wqkv.weight": (3 * h, h), "mixer.Wqkv.bias": (3 * h,), "mixer.out_proj.bias": (h,)},
        "INTERNLM2_PUBLIC": {"attention.wqkv.weight": (2 * h, h), "feed_forward.w2.weight": (h, f)},
        "LLAMA2": {"attention.wq.weight": (h, h), "attention.wk.weight": (h // 2, h), "ffn_norm.weight": (h,)},
        "INTERNLM_MoE": {"mlp.moe_layer.gate.wg.weight": (4, h), "mlp.residual_mlp.w1.weight": (f, h)},
    }[model_type]
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    embedding, head = ("embedding", "head") if block.startswith("blocks") else ("tok_embeddings", "output")
    assert (shapes[f"{embedding}.weight"], shapes[f"{head}.weight"], shapes["norm.weight"]) == ((v, h), (v, h), (h,))
    assert {name: shapes[block + name] for name in wanted} == wanted
    if moe:
        expert = torch.load(tmp_path / "theirs" / "model_moe_layer1_expert3_tp0.pt", weights_only=True)
        assert expert.keys() == {f"blocks.1.mlp.moe_layer.experts.wrapped_experts.3.w{n}.weight" for n in (1, 2, 3)}
        assert not any("wrapped_experts" in name for name in state)
    settings = torch.load(tmp_path / "theirs" / "model_config.pt", weights_only=True)
    assert (settings["num_layers"], settings["hidden_size"], settings["dtype"]) == (2, 32, torch.float32)
    back = open_weights(tmp_path / "theirs", model=made.cfg)
    assert same(build(back), made)
    assert back.model.moe == made.cfg.moe


@pytest.mark.parametrize("model_type", ["LLAMA3", "QWEN3"])
def test_a_family_that_internevo_has_not(tmp_path: Path, model_type: str) -> None:
    assert model_type in SHAPES
    with pytest.raises(CheckpointError, match=f"InternEvo has no model type {model_type}"):
        write_weights(weights(model(model_type)), tmp_path / "theirs", "internevo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model_type", ["INTERNLM", "INTERNLM2_PUBLIC", "LLAMA2"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_an_embedding_cut_by_vocabulary_has_a_name_of_its_own(tmp_path: Path, model_type: str, tensor: int) -> None:
    """With embed_split_hidden=False, the default of INTERNLM2's and LLAMA2's classes."""
    made = model(model_type, **SIZES)
    write_tensor_parallel(made.state_dict(), tmp_path / "8", 2, tensor=tensor, pipeline=1)
    write_model_config(tmp_path / "8", stated(made, embed_split_hidden=False))
    for rank in range(tensor):
        file = tmp_path / "8" / f"model_tp{rank}_pp0.pt"
        content = torch.load(file)
        name = next(name for name in content if name.endswith("embedding.weight") or name == "tok_embeddings.weight")
        del content[name]
        shard = part(made.state_dict()[name], rank, tensor)
        torch.save(content | {f"{name.removesuffix('.weight')}.word_embeddings.weight": shard}, file)
    assert same(build(open_weights(tmp_path / "8")), made)


@pytest.mark.parametrize("model_type", ["INTERNLM2_PUBLIC", "LLAMA2"])
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (2, 2)])
def test_norms_after_the_sums(tmp_path: Path, model_type: str, tensor: int, pipeline: int) -> None:
    """There is then no norm before the head."""
    made = model(model_type, apply_post_layer_norm=True, **SIZES)
    assert "norm.weight" not in made.state_dict()
    write_tensor_parallel(made.state_dict(), tmp_path / "8", 2, tensor=tensor, pipeline=pipeline)
    write_model_config(tmp_path / "8", stated(made, apply_post_layer_norm=True))
    found = open_weights(tmp_path / "8")
    assert found.model.apply_post_layer_norm
    assert same(build(found), made)
    write_weights(found, tmp_path / "back", "internevo")
    assert same(build(open_weights(tmp_path / "back")), made)


def test_a_last_norm_that_is_not_there_is_missed(tmp_path: Path) -> None:
    made = model("INTERNLM2_PUBLIC", apply_post_layer_norm=True, **SIZES)
    write_tensor_parallel(made.state_dict(), tmp_path / "8", 2, tensor=1, pipeline=1)
    write_model_config(tmp_path / "8", stated(made))
    with pytest.raises(CheckpointError, match="lacks the embedding, the MLPs or the last norm"):
        open_weights(tmp_path / "8")


@pytest.mark.parametrize("model_type", ["INTERNLM", "INTERNLM_MoE"])
def test_internlm_never_looks_at_post_norm(tmp_path: Path, model_type: str) -> None:
    made = model(model_type, **SIZES)
    write_tensor_parallel(made.state_dict(), tmp_path / "8", 2, tensor=1, pipeline=1)
    write_model_config(tmp_path / "8", stated(made, apply_post_layer_norm=True))
    found = open_weights(tmp_path / "8", model=made.cfg)
    assert not found.model.apply_post_layer_norm
    assert same(build(found), made)
    ours = weights(model(model_type, apply_post_layer_norm=True, **SIZES))
    with pytest.raises(CheckpointError, match=r"no place for model.apply_post_layer_norm"):
        write_weights(ours, tmp_path / "theirs", "internevo")


def test_the_routing_of_a_mixture_is_said_when_it_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The warning holds what a configuration needs for the way back."""
    made = model("INTERNLM_MoE", **SIZES)
    with caplog.at_level(logging.WARNING):
        write_weights(weights(made), tmp_path / "8", "internevo")
    (said,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert "--config FILE" in said
    moe = yaml.safe_load(said.partition("moe: ")[2])
    assert moe["top_k"] == 2
    settings = made.cfg.model_dump(include={"num_layers", "hidden_size", "num_attention_heads", "vocab_size"})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"model_type": "INTERNLM_MoE", "model": settings, "moe": moe}))
    convert([str(tmp_path / "8"), str(tmp_path / "evo"), "--config", str(tmp_path / "job.yaml")])
    assert open_weights(tmp_path / "evo").model.moe == made.cfg.moe
