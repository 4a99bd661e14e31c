"""A sketch counts what a run of the rank finds, in microseconds: of Muon's matrices to the byte, whoever owns them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evo_core.config import load_config
from evo_core.config.resolve import merge
from evo_core.estimate.rank_cost import quick_cost
from evo_core.estimate.sketch import sketch
from tests.estimate.files import write

WIDE: dict[str, Any] = {"data": {"seq_len": 64, "micro_bsz": 1, "global_batch_tokens": 64 * 512}}
MOE = {"model_type": "INTERNLM_MoE", "model": {"num_experts": 8, "num_kv_attention_heads": 8, "no_bias": False}}
SHARED = {"parallel": {"expert": {"size": 4}}}
MUON = {"optimizer": {"name": "muon"}}


@pytest.mark.parametrize(
    ("gpus", "blocks"),
    [
        (4, MUON),
        (16, MUON),
        (512, MUON),
        (64, MUON | {"model_type": "INTERNLM2_PUBLIC"}),
        (16, MUON | {"parallel": {"pipeline": {"size": 2}}}),
        (16, MUON | {"parallel": {"tensor": {"size": 2, "mode": "isp"}}}),
        (64, MUON | MOE),
        (8, MUON | MOE | SHARED),
        (8, MOE | SHARED),
    ],
    ids=["even", "uneven", "512", "fused", "stages", "isp", "moe", "shared experts", "shared experts, adamw"],
)
def test_states_and_their_messages(tmp_path: Path, gpus: int, blocks: dict[str, Any]) -> None:
    """What the norms keep is left out of sketches."""
    cfg = load_config(write(tmp_path, **merge({"parallel": {"zero1": {"size": -1}}} | WIDE, blocks)))
    here, there = sketch(cfg, cfg.degrees(gpus)), quick_cost(cfg, gpus, 0)
    assert here.gradients == pytest.approx(there.gradients, rel=0.01)
    assert here.states == pytest.approx(there.master + there.moments, rel=0.002)
    for collective in ("reduce", "broadcast"):
        for axis in ("zero", "weight_zero", "expert_zero"):
            assert here.sent.get((collective, axis), 0) == there.sent.get((collective, axis), 0)
    assert here.operations == pytest.approx(there.operations, rel=0.02)


def test_ranks_beyond_the_matrices_add_no_memory(tmp_path: Path) -> None:
    """28 matrices of a model of four layers: what no rank owns takes no room on any."""
    cfg = load_config(write(tmp_path, **MUON, **WIDE, parallel={"zero1": {"size": -1}}))
    costs = [quick_cost(cfg, gpus, 0) for gpus in (32, 128, 512)]
    for part in ("gradients", "master", "moments", "buffers"):
        sizes = [getattr(cost, part) for cost in costs]
        assert sizes == sorted(sizes, reverse=True), part


def test_weights_that_are_not_shared_are_not_fetched(tmp_path: Path) -> None:
    """isp with every weight whole on every rank: a layout that fits is not passed over for what it never holds."""
    isp = {"tensor": {"size": 2, "mode": "isp"}, "weight": {"size": 1}, "zero1": {"size": -1}}
    narrow = {"data": {"seq_len": 64, "micro_bsz": 1, "global_batch_tokens": 64 * 512}}
    cfg = load_config(write(tmp_path, **merge(MUON | MOE | {"parallel": isp}, narrow)))
    found, real = sketch(cfg, cfg.degrees(8)), quick_cost(cfg, 8, 0)
    assert real.gathered == 0
    assert found.memory * 0.97 <= real.total
