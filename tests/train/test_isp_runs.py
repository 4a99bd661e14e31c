"""Runs where copies of the model share weights (isp), from outside: the curve of one process, and nothing left over."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from evo_core.config import TrainConfig
from evo_core.errors import DataError
from evo_core.parallel.weight.gathering import Gathering
from tests.evaluate.test_isp import isp, write_uneven
from tests.ranks import run_on_ranks
from tests.train.jobs import before_each_step, curve, job, run, write_job
from tests.train.test_reading import said

MEASURED = ("loss", "acc", "tokens", "perplexity", "moe_loss", "grad_norm", "lr", "val", "num_consumed_tokens")

GROWING: dict[str, Any] = {
    "model__num_layers": 4,
    "model__drop_rate": 0.1,
    "model__checkpoint": 0.5,
    "data__global_batch_tokens": None,
    "data__skip_batches": "3",
}
"""A batch that grows every second step; one is skipped."""

ROWS: dict[str, Any] = {
    "data__use_packed_dataset": False,
    "data__micro_bsz": 2,
    "data__global_batch_tokens": 256,
    "model__use_dynamic_ntk_rope": True,
    "model__max_position_embeddings": 16,
}
"""A document a row, and other rotary bases in evaluation than in training."""

EXPERTS = {"model_type": "INTERNLM_MoE", "model__num_experts": 4, "model__num_kv_attention_heads": 4}

OFTEN: dict[str, Any] = {"data__valid_every": 2, "ckpt__enable_save_ckpt": False}


def growing(batch: int) -> dict[str, Any]:
    """The same batches in the end, that many micro-batches on a rank."""
    start = batch // 2
    return {"data__micro_num": batch, "data__rampup_batch_size": f"{start} {start} 2"}


def same(one: list[Mapping[str, Any]], many: list[Mapping[str, Any]]) -> None:
    """See that two curves in float64 are the same, with scores at every second step."""
    assert len(many) == len(one) == 8
    for step, (expected, found) in enumerate(zip(one, many, strict=True)):
        assert found.keys() == expected.keys()
        assert sum(key.startswith("val/") for key in found) == (15 if step % 2 else 0)
        for key, value in expected.items():
            if key.split("/")[0] in MEASURED and value is not None:
                assert found[key] == pytest.approx(value, rel=1e-12), (step, key)


@pytest.mark.parametrize(
    ("ranks", "parallel", "settings", "one", "many"),
    [
        (4, isp(2, 4), GROWING, growing(4), growing(2)),
        pytest.param(4, isp(2, 4), ROWS, {}, {}, marks=pytest.mark.slow),
        pytest.param(4, isp(1, 4), EXPERTS | GROWING, growing(8), growing(2), marks=pytest.mark.slow),
        pytest.param(4, isp(4, 2), GROWING, growing(2), growing(2), marks=pytest.mark.slow),
        pytest.param(4, isp(1, 2, pipeline=2), EXPERTS | GROWING, growing(4), growing(2), marks=pytest.mark.slow),
        pytest.param(
            4,
            isp(1, 2, pipeline={"size": 2, "mode": "ZBV"}),
            GROWING | {"model__num_chunks": 2, "model__checkpoint": 0},
            growing(8),
            growing(4),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["a growing batch", "rows", "experts", "one copy", "stages", "zero bubble"],
)
def test_the_curve_of_one_process(
    tmp_path: Path, ranks: int, parallel: Any, settings: dict[str, Any], one: dict[str, Any], many: dict[str, Any]
) -> None:
    alone = job(tmp_path, **settings | OFTEN | one)
    write_uneven(tmp_path / "valid")
    run(alone, tmp_path / "one")
    run_on_ranks(run, ranks, job(tmp_path, parallel=parallel, **settings | OFTEN | many), tmp_path / "many")
    same(curve(tmp_path / "one"), curve(tmp_path / "many"))


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path: Path) -> None:
    run(job(tmp_path, **OFTEN), tmp_path / "one")
    write_uneven(tmp_path / "valid")
    run(job(tmp_path, **OFTEN), tmp_path / "one")
    file = write_job(tmp_path, parallel=isp(2, 4), **OFTEN)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [*torchrun, "-m", "evo_core.train", "--config", str(file), "--folder", str(tmp_path / "many")]
    subprocess.run(command, env=environment, check=True, timeout=300)
    same(curve(tmp_path / "one"), curve(tmp_path / "many"))


@pytest.mark.parametrize(
    ("ranks", "parallel", "failing"),
    [(2, isp(1, 2), 1), pytest.param(4, isp(1, 2, pipeline=2), 1, marks=pytest.mark.slow)],
    ids=["whole", "stages"],
)
def test_a_batch_that_one_copy_cannot_read_ends_all(tmp_path: Path, ranks: int, parallel: Any, failing: int) -> None:
    """The others are in the middle of a step, whose weights they get from it."""
    cfg = job(tmp_path, parallel=parallel, **GROWING | growing(2))
    error = DataError("a damaged shard", file="train_000.bin", line=7)
    results = run_on_ranks(said, ranks, cfg, tmp_path / "run", failing, 5, error)
    assert results == [(DataError, "train_000.bin:7: a damaged shard")] * ranks
    assert [record["step"] for record in curve(tmp_path / "run")] == [0, 1, 2, 3, 4]


def test_an_update_that_overflows_is_left_out_on_all(tmp_path: Path) -> None:
    """Weights in float16, of which each rank holds a half: one sees the overflow, or all."""
    cfg = job(
        tmp_path,
        parallel=isp(1, 2),
        model__dtype="torch.float16",
        ckpt__enable_save_ckpt=False,
        data__valid_every=2,
        grad_scaler={"fp16": {"initial_scale": 2.0**20}, "hysteresis": 1},
    )
    run_on_ranks(run, 2, cfg, tmp_path / "run")
    skipped = [record["inf_nan_skip_batches"] for record in curve(tmp_path / "run")]
    assert skipped[0] == 1
    assert skipped[-1] <= 3  # at half the scale a step may overflow or not, as the CPU rounds; at a quarter none does


def left(cfg: TrainConfig, folder: Path) -> list[dict[str, Any]]:
    """Train; what is alive on this rank before every fifth step, of which every second one follows an evaluation."""
    found: list[dict[str, Any]] = []

    def look(step: int) -> None:
        if step % 5:
            return
        gc.collect()
        objects = gc.get_objects()
        kinds = Counter(type(each).__name__ for each in objects)
        (gathering,) = (each for each in objects if isinstance(each, Gathering))
        buffers = gathering.buffers
        found.append(
            {
                "under way": len(gathering._under_way) + len(gathering._kept) + len(gathering._collected),
                "buffers": (buffers.made, buffers.nbytes),
                "tensors": sum(isinstance(each, torch.Tensor) for each in objects),
                "nodes": sum(number for name, number in kinds.items() if name.endswith(("Backward", "Backward0"))),
                "sums": kinds["GradientSum"] + kinds["Whole"] + kinds["Collected"],
            }
        )

    before_each_step(look)
    run(cfg, folder)
    return found


@pytest.mark.parametrize(
    "overlap", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["overlap and pool", "neither"]
)
def test_nothing_is_left_of_a_step(tmp_path: Path, overlap: bool) -> None:
    parallel = isp(1, 2) | {"weight": {"size": 2, "overlap": overlap, "memory_pool": overlap}}
    settings = {"model__checkpoint": 0.5, "data__total_steps": 50, "data__valid_every": 10}
    cfg = job(tmp_path, parallel=parallel, ckpt__enable_save_ckpt=False, **settings)
    for found in run_on_ranks(left, 2, cfg, tmp_path / "run"):
        assert len(found) == 10
        for each in found:
            assert each["under way"] == each["nodes"] == each["sums"] == 0
        assert found[-1]["tensors"] <= found[2]["tensors"]
        assert len({each["buffers"] for each in found[1:]}) == 1 if overlap else found[-1]["buffers"][1] == 0
