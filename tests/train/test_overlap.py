"""With overlap_sync_grad gradients are on their way while backward still works, also where ranks share layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evo_core.config import TrainConfig
from evo_core.parallel.collectives import counting
from evo_core.parallel.mesh import make_mesh
from evo_core.train.optimizer import make_optimizer
from evo_core.train.run import make_model
from tests.ranks import run_on_ranks
from tests.train.jobs import job

TOKENS = 16


def sent_before(cfg: TrainConfig, name: str, ranks: int) -> tuple[int, int]:
    """Buckets that are being reduced when a parameter gets its gradient, and all."""
    mesh = make_mesh(cfg.degrees(ranks))
    model: Any = make_model(cfg, mesh, torch.device("cpu"), drawn=True)
    ids, before = torch.arange(TOKENS), []
    with counting() as traffic:
        model.get_parameter(name).register_post_accumulate_grad_hook(
            lambda _: before.append(traffic.calls["reduce_scatter"])
        )
        optimizer = make_optimizer(cfg, model, mesh)
        optimizer.begin()
        loss = model(ids, ids, torch.tensor([0, TOKENS], dtype=torch.int32), labels=ids).loss
        optimizer.backward(loss, last=True)
        optimizer.reduce(torch.zeros(0, dtype=torch.float64))
        return before[0], traffic.calls["reduce_scatter"]


@pytest.mark.parametrize(("ranks", "tensor"), [(2, 1), (4, 2)])
def test_the_last_blocks_are_reduced_before_the_first_has_its_gradients(
    tmp_path: Path, ranks: int, tensor: int
) -> None:
    parallel = {"zero1": {"size": 2}, "tensor": {"size": tensor, "mode": "mtp"}}
    optim = {"overlap_sync_grad": True, "reduce_bucket_size": 600}
    cfg = job(tmp_path, parallel=parallel, hybrid_zero_optimizer=optim, model__num_layers=4)
    for before, buckets in run_on_ranks(sent_before, ranks, cfg, "layers.0.ffn_norm.weight", ranks):
        assert before >= buckets // 2 > 1
