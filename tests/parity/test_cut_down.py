"""Users' jobs made small: legal at every number of ranks, with the kinds of parallelism and the flags they had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from torch import nn

from evo_core.config import TrainConfig, load_config
from evo_core.config.resolve import merge
from evo_core.errors import ConfigError
from evo_core.model.registry import register_model_type
from evo_core.parity.cut_down import CutDown, cut_down
from evo_core.parity.job import job, training
from evo_core.parity.layouts import settings_of
from tests.config.jobs import JOBS

ROOT = Path(__file__).parents[2]
SHAPES = sorted((ROOT / "configs" / "models").glob("*.yaml"))


def small(cut: CutDown, folder: Path, ranks: int) -> TrainConfig:
    """The small job at its own layout."""
    cfg = job(merge(training(folder), cut.settings), *settings_of(cut.row), dtype="float64")
    cfg.check_world(ranks)
    return cfg


def of_shape(shape: Path, parallel: dict[str, Any]) -> TrainConfig:
    data = yaml.safe_load(shape.read_text())
    return TrainConfig.model_validate({**data, "parallel": parallel, "ckpt": {"enable_save_ckpt": False}})


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_every_shape_keeps_what_is_cut_how(shape: Path, tensor: int, ranks: int, tmp_path: Path) -> None:
    was = of_shape(shape, {"tensor": {"size": tensor, "mode": "msp"}})
    cut = cut_down(was, ranks)
    cfg = small(cut, tmp_path, ranks)
    size = cfg.parallel.tensor.size
    assert size == min(tensor, ranks)
    assert cfg.parallel.tensor.mode == "msp"
    before, after = was.model, cfg.model
    assert before.num_attention_heads // before.num_kv_attention_heads == (
        after.num_attention_heads // after.num_kv_attention_heads
    )
    assert (before.num_kv_attention_heads < tensor) == (after.num_kv_attention_heads < size)
    assert (before.head_dim * before.num_attention_heads == before.hidden_size) == (
        after.head_dim * after.num_attention_heads == after.hidden_size
    )
    for name in ("no_bias", "qk_norm", "tie_word_embeddings", "norm_type", "use_swiglu", "norm_head", "mlp_ratio"):
        assert getattr(before, name) == getattr(after, name), name
    assert after.hidden_size <= 128 and after.num_layers <= 4 and after.vocab_size <= 96


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_shipped_job_can_be_tried(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for ranks in (2, 4):
        cut = cut_down(load_config(path), ranks)
        small(cut, tmp_path, ranks)
        assert any(line.startswith("model.num_layers") or "random documents" in line for line in cut.notes)


@pytest.mark.parametrize(
    ("tensor", "zero1", "ranks", "small_tensor", "small_zero1"),
    [
        (8, 16, 4, 2, 2),  # both kinds stay
        (8, 16, 2, 2, 1),
        (8, -1, 4, 2, -1),
        (8, 1, 4, 4, 1),
        (4, -1, 4, 4, -1),  # it fits
        (4, 2, 4, 2, 2),
        (2, 8, 4, 2, 2),
        (1, 8, 4, 1, 4),
    ],
)
def test_a_layout_that_does_not_fit_keeps_its_kinds(
    tensor: int, zero1: int, ranks: int, small_tensor: int, small_zero1: int, tmp_path: Path
) -> None:
    shape = ROOT / "configs" / "models" / "llama2_7b_gqa.yaml"
    was = of_shape(shape, {"tensor": {"size": tensor, "mode": "fsp"}, "zero1": {"size": zero1}})
    cut = cut_down(was, ranks)
    parallel = small(cut, tmp_path, ranks).parallel
    assert (parallel.tensor.size, parallel.tensor.mode, parallel.zero1.size) == (small_tensor, "fsp", small_zero1)
    assert (f"parallel.tensor.size {tensor} -> {small_tensor}" in cut.notes) == (tensor != small_tensor)


@pytest.mark.parametrize(
    ("pipeline", "tensor", "zero1", "ranks", "small_pipeline", "small_tensor", "small_zero1"),
    [
        (8, 8, -1, 4, 2, 2, -1),  # both of model parallelism rather than data ranks
        (8, 8, -1, 2, 2, 1, -1),
        (8, 1, 16, 4, 2, 1, 2),
        (8, 1, 1, 4, 4, 1, 1),
        (4, 1, 8, 4, 2, 1, 2),
        (4, 1, -1, 4, 4, 1, -1),  # it fits
        (2, 2, 1, 4, 2, 2, 1),
        (2, 1, 2, 4, 2, 1, 2),
    ],
)
def test_a_pipeline_that_does_not_fit_keeps_its_kinds(
    pipeline: int,
    tensor: int,
    zero1: int,
    ranks: int,
    small_pipeline: int,
    small_tensor: int,
    small_zero1: int,
    tmp_path: Path,
) -> None:
    shape = ROOT / "configs" / "models" / "llama2_7b_gqa.yaml"
    sizes = {"pipeline": {"size": pipeline}, "tensor": {"size": tensor, "mode": "msp"}, "zero1": {"size": zero1}}
    cut = cut_down(of_shape(shape, sizes), ranks)
    found = small(cut, tmp_path, ranks).parallel
    assert (found.pipeline.size, found.tensor.size, found.zero1.size) == (small_pipeline, small_tensor, small_zero1)
    assert (f"parallel.pipeline.size {pipeline} -> {small_pipeline}" in cut.notes) == (pipeline != small_pipeline)


@pytest.mark.parametrize(
    ("pipeline", "tensor", "weight", "zero1", "ranks", "kept"),
    [
        (1, 2, 4, -1, 4, (1, 2, 4, -1)),  # it fits
        (1, 2, 4, -1, 2, (1, 2, 2, -1)),
        (1, 8, 8, -1, 4, (1, 4, 2, -1)),  # weights are cut, and their optimizer's states besides
        (1, 8, 8, 1, 4, (1, 4, 4, 1)),
        (1, 1, 8, 4, 4, (1, 1, 2, 2)),
        (1, 8, 1, 8, 4, (1, 4, 1, 4)),
        (1, 2, 2, 4, 4, (1, 2, 2, 2)),
        (8, 4, 16, -1, 4, (2, 2, 2, -1)),
    ],
)
@pytest.mark.parametrize("shape", ["llama2_7b_gqa", "qwen3_0_6b"])
def test_isp_keeps_both_its_sizes(
    shape: str,
    pipeline: int,
    tensor: int,
    weight: int,
    zero1: int,
    ranks: int,
    kept: tuple[int, int, int, int],
    tmp_path: Path,
) -> None:
    sizes = {
        "pipeline": {"size": pipeline},
        "tensor": {"size": tensor, "mode": "isp"},
        "weight": {"size": weight, "overlap": True, "memory_pool": True},
        "zero1": {"size": zero1},
    }
    cut = cut_down(of_shape(ROOT / "configs" / "models" / f"{shape}.yaml", sizes), ranks)
    found = small(cut, tmp_path, ranks).parallel
    assert (found.pipeline.size, found.tensor.size, found.weight.size, found.zero1.size) == kept
    assert (found.tensor.mode, found.weight.overlap, found.weight.memory_pool) == ("isp", True, True)
    assert (f"parallel.weight.size {weight} -> {kept[2]}" in cut.notes) == (weight != kept[2])


def test_an_mlp_that_weight_ranks_share_still_divides(tmp_path: Path) -> None:
    was = TrainConfig.model_validate(
        {
            "model": {
                "num_layers": 2,
                "hidden_size": 96,
                "num_attention_heads": 4,
                "vocab_size": 64,
                "mlp_ratio": 4,
                "multiple_of": 3,
            },
            "parallel": {"tensor": {"mode": "isp"}, "weight": {"size": 4}},
            "ckpt": {"enable_save_ckpt": False},
        }
    )
    cfg = small(cut_down(was, 4), tmp_path, 4)
    assert (cfg.parallel.weight.size, cfg.model.multiple_of) == (4, 12)


@pytest.mark.parametrize(
    ("layers", "pipeline", "chunks", "mode", "ranks", "small_layers"),
    [
        (32, 8, 1, "1F1B", 2, 4),
        (32, 8, 1, "1F1B", 4, 4),
        (33, 8, 1, "1F1B", 2, 5),  # stages of unlike size stay so
        (33, 8, 1, "ZBH1", 4, 5),
        (32, 4, 2, "1F1B", 2, 4),
        (32, 4, 2, "1F1B", 4, 8),  # a layer for each of eight stages
        (36, 4, 2, "ZBV", 2, 6),
        (60, 4, 5, "1F1B", 4, 20),
        (2, 2, 1, "1F1B", 2, 2),
        (3, 2, 1, "1F1B", 2, 3),
    ],
)
def test_every_stage_of_the_small_model_has_a_layer(
    layers: int, pipeline: int, chunks: int, mode: str, ranks: int, small_layers: int, tmp_path: Path
) -> None:
    was = TrainConfig.model_validate(
        {
            "model": {
                "num_layers": layers,
                "hidden_size": 64,
                "num_attention_heads": 4,
                "vocab_size": 64,
                "num_chunks": chunks,
            },
            "parallel": {"pipeline": {"size": pipeline, "mode": mode, "interleaved_overlap": chunks > 1}},
            "data": {"micro_num": 4 * pipeline},
            "ckpt": {"enable_save_ckpt": False},
        }
    )
    cut = cut_down(was, ranks)
    cfg = small(cut, tmp_path, ranks)
    said = cfg.parallel.pipeline
    assert (cfg.model.num_layers, cfg.model.num_chunks) == (small_layers, chunks)
    assert (said.mode, said.interleaved_overlap) == (mode, chunks > 1)
    assert "num_chunks" not in cut.settings["model"]  # the other rows have chunks of their own


@pytest.mark.parametrize(
    ("said", "ranks", "beside", "kept"),
    [
        (4, 4, {}, 4),
        (4, 2, {}, 2),
        (2, 4, {"tensor": 2}, 2),
        (2, 2, {"pipeline": 2}, 1),
        (1, 4, {}, 1),
        (-1, 4, {}, -1),
    ],
)
def test_experts_are_over_as_many_ranks_as_there_can_be(
    said: int, ranks: int, beside: dict[str, Any], kept: int, tmp_path: Path
) -> None:
    cut = cut_down(of_shape(ROOT / "configs" / "models" / "internlm_moe4.yaml", {"expert": said, **beside}), ranks)
    assert small(cut, tmp_path, ranks).parallel.expert.size == kept
    assert (f"parallel.expert.size {said} -> {kept}" in " ".join(cut.notes)) == (said != kept)


def test_what_says_how_it_trains_is_kept(tmp_path: Path) -> None:
    was = TrainConfig.model_validate(
        {
            "model_type": "INTERNLM_MoE",
            "seed": 7,
            "model": {
                "num_layers": 32,
                "hidden_size": 4096,
                "num_attention_heads": 32,
                "vocab_size": 103168,
                "num_experts": 16,
                "checkpoint": 0.5,
                "drop_rate": 0.1,
                "parallel_output": False,
            },
            "moe": {"top_k": 2, "capacity_factor": 1.5},
            "loss": {"label_smoothing": 0.1},
            "adam": {"lr": 3e-4, "weight_decay": 0.1},
            "data": {"pack_sample_into_one": True, "seq_len": 4096},
            "hybrid_zero_optimizer": {"overlap_sync_grad": True},
            "ckpt": {"enable_save_ckpt": False},
        }
    )
    cfg = small(cut_down(was, 2), tmp_path, 2)
    assert (cfg.seed, cfg.model.num_experts, cfg.moe.capacity_factor) == (7, 4, 1.5)
    assert (float(cfg.model.checkpoint), cfg.model.drop_rate, cfg.loss.label_smoothing) == (0.5, 0.1, 0.1)
    assert (cfg.adam.weight_decay, cfg.data.pack_sample_into_one) == (0.1, True)
    assert cfg.hybrid_zero_optimizer.overlap_sync_grad and not cfg.model.parallel_output
    assert not {"checkpoint", "parallel_output"} & set(cut_down(was, 2).settings["model"])  # one process does without
    std = was.model.attn_wqkv_init_std * (4096 / cfg.model.hidden_size) ** 0.5
    assert cfg.model.attn_wqkv_init_std == pytest.approx(std)


class Bigram(nn.Module):
    class Config(BaseModel):
        vocab_size: int


def test_a_model_type_of_ones_own_is_refused_in_a_sentence() -> None:
    register_model_type("PARITY_BIGRAM", Bigram, replace=True)
    cfg = TrainConfig.model_validate(
        {"model_type": "PARITY_BIGRAM", "model": {"vocab_size": 64}, "ckpt": {"enable_save_ckpt": False}}
    )
    with pytest.raises(ConfigError, match=r"PARITY_BIGRAM is a model type of your own"):
        cut_down(cfg, 2)
