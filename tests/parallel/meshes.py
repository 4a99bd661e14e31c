"""Meshes for tests, from a ``parallel`` block and the ranks at hand."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from evo_core.config.schema.parallel import ParallelConfig
from evo_core.parallel.degrees import Degrees
from evo_core.parallel.mesh import Mesh, make_mesh


def mesh_of(zero1: int = -1, *, experts: int = 1, **parallel: Any) -> Mesh:
    """The mesh of the default group's ranks, for a model with so many experts in a layer; `parallel` holds further
    settings, as ``tensor=2``."""
    block = ParallelConfig.model_validate({"zero1": zero1, **parallel})
    return make_mesh(Degrees.of(block, dist.get_world_size(), experts))
