"""Beside torch's own sharding of weights (FSDP2's fully_shard), over the same ranks with the same batches.

fully_shard gathers the parameters of a module before it computes and sums their gradients over the ranks behind it, of
which each sees other micro-batches: what isp does where no sequence is split. Where one is, ranks that share a sequence
see the same micro-batch; fully_shard's model is then given all of it on each of them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.parallel.weight.jobs import EXPERTS, MOE_COEFF, Job, arguments, micro_batch, scaled, small, whole_model
from tests.ranks import run_on_ranks

BAR = 1e-12
COUNT = 3
"""Micro-batches of each data rank."""


def by_fully_shard(cfg: Any, weight: int, job: Job) -> dict[str, torch.Tensor]:
    """The gradients of a step by torch, over the ranks that share each weight and copies of them."""
    data = job.mesh.data
    world = job.mesh.world.size
    devices = init_device_mesh("cpu", (world // weight, weight), mesh_dim_names=("copy", "shard"))
    mesh = devices["shard"] if world == weight else devices
    model = whole_model(cfg)
    scaled(model, 0.9)
    for block in model.blocks.values():
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)
    for number in range(COUNT):
        model.set_requires_gradient_sync(number == COUNT - 1)  # type: ignore[operator]
        batch = micro_batch(number * data.size + data.rank)
        (model(*arguments(batch), **batch.more).objective(MOE_COEFF) / COUNT).backward()
    found = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter.grad, DTensor)
        found[name] = parameter.grad.full_tensor()  # the mean over all ranks, as a step's gradient is over data ranks
    return found


def deviation(settings: dict[str, Any], tensor: int, weight: int, pool: bool) -> float:
    cfg = small(num_layers=3, **settings)
    job = Job(cfg, tensor, weight, overlap=pool, pool=pool)
    job.train(1)
    scaled(job.model, 0.9)
    job.train(COUNT)
    return job.deviation(by_fully_shard(cfg, weight, job))


@pytest.mark.parametrize(
    ("ranks", "tensor", "weight"),
    [
        (2, 1, 2),
        (2, 2, 2),
        pytest.param(2, 2, 1, marks=pytest.mark.slow),
        pytest.param(4, 1, 4, marks=pytest.mark.slow),
        pytest.param(4, 1, 2, marks=pytest.mark.slow),
        pytest.param(4, 2, 4, marks=pytest.mark.slow),
        pytest.param(4, 2, 2, marks=pytest.mark.slow),
        pytest.param(4, 4, 2, marks=pytest.mark.slow),
        pytest.param(4, 4, 4, marks=pytest.mark.slow),
    ],
)
def test_gradients_as_fully_shards(ranks: int, tensor: int, weight: int) -> None:
    def body() -> list[float]:
        return [
            deviation({}, tensor, weight, pool=False),
            deviation({"checkpoint": 0.5}, tensor, weight, pool=True),
            deviation({**EXPERTS, "checkpoint": True}, tensor, weight, pool=True),
        ]

    for found in run_on_ranks(body, ranks, timeout=120.0):
        assert max(found) <= BAR, found
