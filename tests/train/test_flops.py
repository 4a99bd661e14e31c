"""What a model needs, against torch's own count of what is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from evo_core.config import ModelConfig
from evo_core.model import build_model, init_weights
from evo_core.train.flops import hardware_flops, known_peak, model_flops
from evo_core.train.metrics import visible_pairs

SMALL: dict[str, Any] = {
    "model_type": "INTERNLM2_PUBLIC", "vocab_size": 60, "hidden_size": 24, "num_layers": 3, "num_attention_heads": 4,
    "num_kv_attention_heads": 2, "mlp_ratio": 2.0, "multiple_of": 4, "dtype": "torch.float32",
}  # fmt: skip

MIXTURE = {
    "model_type": "INTERNLM_MoE", "num_kv_attention_heads": 4, "num_experts": 4, "moe_type": "MegaBlock",
    "moe_use_residual": True, "moe": {"top_k": 2},
}  # fmt: skip


@pytest.mark.parametrize("differs", [{}, {"use_swiglu": False}, {"no_bias": True, "head_dim": 10}, MIXTURE])
def test_products_are_those_that_torch_counts(differs: dict[str, Any]) -> None:
    cfg = ModelConfig.model_validate(SMALL | differs)
    model = build_model(cfg)
    init_weights(model, cfg, 1)
    tokens = 32
    ids = torch.randint(0, 60, (tokens,))
    positions, cu_seqlens = torch.zeros(tokens, dtype=torch.int64), torch.arange(tokens + 1, dtype=torch.int32)
    with FlopCounterMode(display=False) as counter:
        model(ids, positions, cu_seqlens).logits.sum().backward()
    by_kind = counter.get_flop_counts()["Global"]
    # Attention is counted by pairs, and what adds up the results of experts (bmm) multiplies with no weight.
    counted = sum(flops for op, flops in by_kind.items() if str(op) in ("aten.mm", "aten.addmm"))
    assert counted == pytest.approx(model_flops(cfg).per_token * tokens, rel=1e-6)


def test_pairs() -> None:
    packs = [torch.tensor([0, 3, 4], dtype=torch.int32), torch.tensor([0, 70_000], dtype=torch.int32)]
    assert visible_pairs(packs) == 6 + 1 + 70_000 * 70_001 // 2


def test_what_is_computed_again() -> None:
    cfg = ModelConfig.model_validate(SMALL)
    model, all_again = model_flops(cfg), hardware_flops(cfg, 3)
    head = 6 * 24 * 60
    assert hardware_flops(cfg, 0) == model
    assert all_again.per_token - head == pytest.approx((model.per_token - head) * 4 / 3)
    assert all_again.per_pair == pytest.approx(model.per_pair * 4 / 3)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40S", 362.0),
        ("Tesla T4", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peaks(name: str, peak: float | None) -> None:
    assert known_peak(name) == (None if peak is None else (name, peak))
