"""What a model needs, against torch's own count of what is computed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evo_core.checkpoint import TrainState
from evo_core.config import ModelConfig
from evo_core.data import open_source
from evo_core.model import build_model, init_weights
from evo_core.parallel.mesh import make_mesh
from evo_core.train.checkpointing import Asked
from evo_core.train.flops import hardware_flops, model_flops
from evo_core.train.metrics import visible_pairs
from evo_core.train.optimizer import make_optimizer
from evo_core.train.peaks import known_peak, log_peak
from evo_core.train.run import make_model
from evo_core.train.step import TrainStep
from evo_core.train.throughput import Throughput
from tests.ranks import run_on_ranks
from tests.train.jobs import job

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


def added_product(total: torch.Size, left: torch.Size, right: torch.Size, **more: Any) -> int:
    """What torch has no formula for: the head adds its weight's gradient up in place."""
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize(
    "differs",
    [
        {},
        {"checkpoint": 1.0},
        {"checkpoint": 0.67},
        {"checkpoint": 1.0, "use_swiglu": False, "head_dim": 10, "tie_word_embeddings": True},
        {"checkpoint": 1.0, "apply_post_layer_norm": True},
        {"checkpoint": 1.0, "drop_rate": 0.1},
        MIXTURE | {"checkpoint": 1.0},
        MIXTURE | {"checkpoint": 1.0, "moe_type": "GShard", "moe": {"top_k": 2, "drop_tokens": False}},
        MIXTURE | {"checkpoint": 1.0, "moe_use_residual": False},
    ],
)
def test_a_step_computes_what_hardware_counts(differs: dict[str, Any]) -> None:
    """Two documents, by a kernel of attention that computes the pairs which are masked, too."""
    cfg = ModelConfig.model_validate(SMALL | differs)
    model = build_model(cfg).train()
    init_weights(model, cfg, 1)
    lengths, tokens, again = (64, 32), 96, int(3 * float(cfg.checkpoint))
    ids, positions = torch.randint(0, 60, (tokens,)), torch.cat([torch.arange(length) for length in lengths])
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_product})
    with counter, sdpa_kernel(SDPBackend.MATH):
        output = model(ids, positions, torch.tensor([0, 64, 96], dtype=torch.int32), labels=ids)
        output.objective(0.01).backward()
    counted = sum(counter.get_flop_counts()["Global"].values())
    if cfg.num_experts > 1:  # the results of a token's experts are added up: k products of a number and a vector
        sums = 3 * 3 + (again if cfg.moe_use_residual else 0)
        counted -= sums * 2 * tokens * cfg.moe.top_k * cfg.hidden_size
    assert counted == hardware_flops(cfg, again).of(tokens, sum(length**2 for length in lengths))


def test_what_is_computed_again() -> None:
    cfg = ModelConfig.model_validate(SMALL)
    model, all_again = model_flops(cfg), hardware_flops(cfg, 3)
    head, last = 6 * 24 * 60, 3 * 2 * 24 * 48
    assert hardware_flops(cfg, 0) == model
    assert all_again.per_token - head == pytest.approx((model.per_token - head) * 4 / 3 - last)
    assert all_again.per_pair == pytest.approx(model.per_pair * 4 / 3)
    compiled = hardware_flops(cfg.model_copy(update={"compile": True}), 3)
    assert compiled.per_token == all_again.per_token + last


def test_each_stage_computes_a_part_of_its_own_blocks_again(tmp_path: Path) -> None:
    """Of stages of 1, 1, 2 and 2 blocks a half is 0, 0, 1 and 1, not three."""
    cfg = job(tmp_path, model__num_layers=6, model__checkpoint=0.5, parallel={"pipeline": {"size": 4}})
    assert isinstance(cfg.model, ModelConfig)
    assert Throughput.of(cfg, world_size=4, dp=1).hardware == hardware_flops(cfg.model, 2)


@pytest.mark.parametrize(
    "parallel",
    [
        {"tensor": {"size": 2, "mode": "msp"}},
        {"pipeline": {"size": 2}},
        {"tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 4}},
    ],
    ids=["tensor", "pipeline", "isp"],
)
def test_what_all_ranks_do_is_counted_once(tmp_path: Path, parallel: dict[str, Any]) -> None:
    """Four ranks have a part of the work each, and two and two the same data."""
    cfg = job(tmp_path, parallel=parallel | {"zero1": {"size": 1}}, model__checkpoint=1.0)

    def body() -> tuple[float, dict[str, float], float]:
        mesh = make_mesh(cfg.degrees(4))
        source = open_source(cfg, dp_rank=mesh.data.rank, dp_size=mesh.data.size)
        batch, cpu = source.draw(0)[0], torch.device("cpu")
        model = make_model(cfg, mesh, cpu, drawn=True)
        speed = Throughput.of(cfg, world_size=4, dp=mesh.data.size, peak=1e-12)  # a chip of one operation a second
        optimizer = make_optimizer(cfg, model, mesh)
        step = TrainStep(cfg, mesh, model, optimizer, speed=speed, types=source.types, device=cpu)
        measured = step.train(batch, TrainState(), Asked(), began=time.perf_counter()).measured
        assert measured is not None and mesh.data.size == 2
        return visible_pairs(batch.cu_seqlens), measured.speed, measured.seconds

    pairs, speeds, seconds = zip(*run_on_ranks(body, 4), strict=True)
    all_pairs, layers = sum(pairs) / 2, 2
    assert isinstance(cfg.model, ModelConfig)
    for name, each in (("mfu", model_flops(cfg.model)), ("hfu", hardware_flops(cfg.model, layers))):
        for speed, took in zip(speeds, seconds, strict=True):
            assert speed[name] * took * 4 == pytest.approx(each.of(128, all_pairs), rel=1e-12)


def test_no_share_of_a_chip_or_a_model_that_is_not_known(tmp_path: Path) -> None:
    speed = Throughput.of(job(tmp_path), world_size=1, dp=1)
    assert speed.utilization(4, 1e3, 0.5) == {}
    assert replace(speed, model=None, hardware=None, peak=989.4).utilization(4, 1e3, 0.5) == {}


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.0),
        ("NVIDIA H800 PCIe", 756.0),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("GRID A100-10C", None),
        ("Tesla T4", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peaks(name: str, peak: float | None) -> None:
    assert known_peak(name, torch.bfloat16) == known_peak(name, torch.float16) == peak
    assert known_peak(name, torch.float32) is None and known_peak(name, torch.float64, tf32=True) is None
    assert known_peak(name, torch.float32, tf32=True) == (None if peak is None else peak / 2)


def test_nothing_is_said_of_a_cpu(caplog: pytest.LogCaptureFixture) -> None:
    assert log_peak(torch.device("cpu"), torch.bfloat16) is None
    assert not caplog.records
