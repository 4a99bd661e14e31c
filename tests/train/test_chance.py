"""Models that draw (dropout, routers of experts): the same on any number of ranks, after a resume, and recomputed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evo_core.data import BinWriter
from evo_core.train.chance import seed_micro_batch
from tests.ranks import run_on_ranks
from tests.train.jobs import curve, job, losses, run

EXPERTS = {
    "model_type": "INTERNLM_MoE",
    "model__num_experts": 4,
    "model__num_kv_attention_heads": 4,
    "moe__capacity_factor": 0.5,
    "moe__min_capacity": 1,
    "moe__noisy_gate_policy": "RSample",
}
DROPOUT = {"model__drop_rate": 0.1, "model__attn_drop_rate": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "dropout": DROPOUT,
    "experts": EXPERTS,
    "two experts": EXPERTS | {"moe__top_k": 2, "model__moe_use_residual": True},
    "dropless": EXPERTS | {"moe__top_k": 3, "model__moe_type": "MegaBlock"},
    "both": EXPERTS | DROPOUT,
}


@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_ranks_and_recomputation_change_nothing(tmp_path: Path, name: str) -> None:
    settings = MODELS[name] | {"ckpt__enable_save_ckpt": False, "data__total_steps": 4}
    run(job(tmp_path, **settings), tmp_path / "one")
    run_on_ranks(run, 2, job(tmp_path, **settings), tmp_path / "two")
    run(job(tmp_path, **settings, model__checkpoint=True), tmp_path / "recomputed")
    for other in ("two", "recomputed"):
        for one, got in zip(curve(tmp_path / "one"), curve(tmp_path / other), strict=True):
            for field in ("loss", "grad_norm", "moe_loss"):
                assert got.get(field, 0) == pytest.approx(one.get(field, 0), rel=1e-11), field


def test_a_resumed_run_draws_what_the_uninterrupted_one_drew(tmp_path: Path) -> None:
    whole = job(tmp_path, **MODELS["both"], data__total_steps=5, ckpt__save_ckpt_folder=str(tmp_path / "whole"))
    run(whole, tmp_path / "whole_run")
    settings = MODELS["both"] | {"lr_scheduler__total_steps": 5}
    run(job(tmp_path, **settings, data__total_steps=3), tmp_path / "run")
    run(job(tmp_path, **settings, data__total_steps=5), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole_run")


def test_the_balance_loss_is_logged_apart_and_lowered_by_its_coefficient(tmp_path: Path) -> None:
    settings = MODELS["two experts"] | {"ckpt__enable_save_ckpt": False, "moe__noisy_gate_policy": None}
    settings |= {"model__ffn_uplayer_init_std": 1.0}  # a router that starts with favourites
    curves = {}
    for coefficient in (0.0, 5.0):
        run(job(tmp_path, **settings, loss__moe_loss_coeff=coefficient), tmp_path / str(coefficient))
        curves[coefficient] = curve(tmp_path / str(coefficient))
    without, pulled = curves[0.0], curves[5.0]
    assert without[0]["loss"] == pulled[0]["loss"] == pytest.approx(math.log(64), abs=0.2)
    assert without[0]["moe_loss"] == pulled[0]["moe_loss"] > 2.2  # 1 a layer is even
    assert without[0]["grad_norm"] < pulled[0]["grad_norm"]
    assert pulled[-1]["moe_loss"] < without[-1]["moe_loss"] - 0.1


STILL = {"adam__lr": 1e-300, "lr_scheduler": {"eta_min": 0.0, "warmup_ratio": 0.0}, "ckpt__enable_save_ckpt": False}


@pytest.mark.parametrize(
    ("settings", "draws"),
    [
        (DROPOUT, True),
        ({"model__drop_rate": 0.1}, True),
        ({"model__attn_drop_rate": 0.1}, True),
        (EXPERTS, True),
        (EXPERTS | {"moe__noisy_gate_policy": "Jitter", "moe__capacity_factor": 4.0}, True),
        (EXPERTS | {"moe__noisy_gate_policy": None, "moe__use_rts": False}, False),
        ({}, False),
    ],
    ids=["dropout", "of the residual", "of attention", "RSample", "Jitter", "experts without noise", "nothing"],
)
def test_every_step_draws_anew(tmp_path: Path, settings: dict[str, Any], draws: bool) -> None:
    """On one document, over and over, with weights that stand still, only what is drawn tells steps apart."""
    with BinWriter(tmp_path / "data" / "en" / "t.bin") as writer:
        for _ in range(64):
            writer.write(np.arange(3, 35))
    (tmp_path / "valid").mkdir()
    cfg = job(tmp_path, **settings | STILL, data__total_steps=6, data__global_batch_tokens=32)
    run(cfg, tmp_path / "run")
    assert len(set(losses(tmp_path / "run"))) == (6 if draws else 1)


def test_every_micro_batch_of_every_step_draws_its_own() -> None:
    drawn = set()
    for step in range(15):
        for number in range(15):
            seed_micro_batch(7, step, number)
            drawn.add(float(torch.rand((), dtype=torch.float64)))
    assert len(drawn) == 15 * 15
    seed_micro_batch(7, 3, 4)
    assert float(torch.rand((), dtype=torch.float64)) in drawn
    seed_micro_batch(8, 3, 4)
    assert float(torch.rand((), dtype=torch.float64)) not in drawn
