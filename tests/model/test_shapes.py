"""The shipped shapes have the sizes that were published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evo_core.config import ModelConfig, load_config
from evo_core.model import build_model, count_parameters

SHAPES = Path(__file__).parents[2] / "configs" / "models"

PUBLISHED = {
    "internlm_7b": 7_321_948_160,
    "internlm2_1_8b": 1_889_110_016,
    "internlm2_7b": 7_737_708_544,
    "internlm2_20b": 19_861_149_696,
    "llama2_7b": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    "llama3_1_8b": 8_030_261_248,
    "llama3_1_70b": 70_553_706_496,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
}
"""Parameters, each counted once (a tied head not at all)."""


def by_formula(cfg: ModelConfig) -> int:
    """Parameters by the sizes of the matrices."""
    hidden, head = cfg.hidden_size, cfg.head_dim
    q, kv = cfg.num_attention_heads * head, cfg.num_kv_attention_heads * head
    attention = 2 * hidden * q + 2 * hidden * kv
    attention += 0 if cfg.no_bias else q + 2 * kv + hidden
    attention += 2 * head if cfg.qk_norm else 0
    mlp = 3 * hidden * cfg.mlp_hidden_size
    if cfg.num_experts > 1:
        mlp = cfg.num_experts * (mlp + hidden)
    embeddings = cfg.vocab_size * hidden * (1 if cfg.tie_word_embeddings else 2)
    return embeddings + cfg.num_layers * (attention + mlp + 2 * hidden) + hidden


@pytest.mark.parametrize("path", sorted(SHAPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_shape_is_built_with_its_published_size(path: Path) -> None:
    cfg = load_config(path).model
    model = build_model(cfg, device="meta")
    assert {parameter.device for parameter in model.parameters()} == {torch.device("meta")}
    assert count_parameters(model) == by_formula(cfg)
    if path.stem in PUBLISHED:
        assert count_parameters(model) == PUBLISHED[path.stem]


def test_published_sizes_are_of_shapes_that_are_shipped() -> None:
    assert PUBLISHED.keys() <= {path.stem for path in SHAPES.glob("*.yaml")}
