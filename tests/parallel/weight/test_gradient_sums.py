"""A gathered weight's gradient is as wide as its sum over the ranks, whatever the type of the weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from evo_core.config import TrainConfig
from evo_core.parallel.mesh import make_mesh
from evo_core.train.optimizer import make_optimizer
from evo_core.train.run import make_model
from tests.ranks import run_on_ranks
from tests.train.jobs import job


def mean_gradient(cfg: TrainConfig, of_rank: tuple[float, float]) -> float:
    """Of one weight of the first block over two data ranks, each of which finds another gradient of it."""
    mesh = make_mesh(cfg.degrees(2))
    model: Any = make_model(cfg, mesh, torch.device("cpu"), drawn=True)
    optimizer: Any = make_optimizer(cfg, model, mesh)
    layer = model.blocks["0"].mlp.down
    optimizer.begin()
    x = torch.ones(1, layer.in_features, dtype=model.dtype)
    optimizer.backward((layer(x).float() * of_rank[dist.get_rank()]).sum(), last=True)
    optimizer.reduce(torch.zeros(0, dtype=torch.float64))
    (name,) = (name for name, parameter in model.named_parameters() if parameter is layer.weight)
    return float(optimizer.gradients()[name].local.flatten()[0])


@pytest.mark.parametrize(
    ("dtype", "of_rank", "mean"),
    [("bfloat16", (256.0, 1.0), 128.5), ("float16", (40000.0, 40000.0), 40000.0)],  # 257 rounds, 80000 is infinite
)
def test_the_sum_over_ranks_is_neither_rounded_nor_infinite(
    tmp_path: Path, dtype: str, of_rank: tuple[float, float], mean: float
) -> None:
    parallel = {"tensor": {"size": 1, "mode": "isp"}, "weight": {"size": 2, "overlap": True}, "zero1": {"size": 1}}
    scale = {"fp16": {"initial_scale": 1}}
    cfg = job(tmp_path, parallel=parallel, model__dtype=f"torch.{dtype}", grad_scaler=scale)
    assert run_on_ranks(mean_gradient, 2, cfg, of_rank) == [mean, mean]
