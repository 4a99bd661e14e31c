"""The one owner of the parallel layout: which ranks form which group.

Rank order is the original's: tensor ranks are neighbours, then data, and pipeline stages are the slowest. Inside the
data ranks a ZeRO group is a run of neighbours, and the ranks at the same place of every ZeRO group are replicas of
each other. With the mesh [pipeline, replica, zero, tensor] every group is one axis, or two flattened.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from evo_core.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Sizes, this rank's coordinates and its groups.

    Attributes:
        dp: data-parallel ranks.
        zero1: ranks that share one copy of the optimizer state; divides `dp`.
        state_mesh: mesh [replica, zero] that optimizer state is placed on.
        data_group: the ranks that see different data; `zero_group` and `replica_group` are its two factors.
    """

    world_size: int
    dp: int
    zero1: int
    dp_rank: int
    zero_rank: int
    state_mesh: DeviceMesh
    data_group: dist.ProcessGroup
    zero_group: dist.ProcessGroup
    replica_group: dist.ProcessGroup
    tensor: int = 1
    pipeline: int = 1

    @property
    def replicas(self) -> int:
        """Copies of the optimizer state."""
        return self.dp // self.zero1

    @property
    def is_log_rank(self) -> bool:
        """Whether this rank prints and writes metrics."""
        return self.dp_rank == 0


def make_layout(zero1_size: int = -1, *, device_type: str = "cpu") -> Layout:
    """Lay out the ranks of the default process group; every rank must call it.

    Args:
        zero1_size: ranks that share one copy of the optimizer state; 0 or less means all data-parallel ranks.
        device_type: "cpu" or "cuda".

    Raises:
        ConfigError: the size does not divide the data-parallel ranks.
    """
    world_size = dp = dist.get_world_size()
    zero1 = zero1_size if zero1_size > 0 else dp
    if dp % zero1:
        legal = [n for n in range(1, dp + 1) if dp % n == 0]
        nearest = min(legal, key=lambda n: (abs(n - zero1), n))
        raise ConfigError(
            f"size {zero1} does not divide the {dp} data-parallel ranks",
            key="parallel.zero1.size",
            hint=f"nearest legal size: {nearest}",
        )
    mesh = init_device_mesh(
        device_type, (1, dp // zero1, zero1, 1), mesh_dim_names=("pipeline", "replica", "zero", "tensor")
    )
    state_mesh = mesh["replica", "zero"]
    data_mesh = state_mesh._flatten("data")
    return Layout(
        world_size=world_size,
        dp=dp,
        zero1=zero1,
        dp_rank=data_mesh.get_local_rank(),
        zero_rank=mesh.get_local_rank("zero"),
        state_mesh=state_mesh,
        data_group=data_mesh.get_group(),
        zero_group=mesh.get_group("zero"),
        replica_group=mesh.get_group("replica"),
    )
