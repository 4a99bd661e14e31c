"""The optimizer of a model that every data rank holds as a whole, for tests."""

from __future__ import annotations

from typing import Any

from torch import nn

from evo_core.optim.groups import data_parallel
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.mesh import Mesh


def zero1_adamw(model: nn.Module, mesh: Mesh, **settings: Any) -> Zero1AdamW:
    """`settings` are those of the optimizer."""
    return Zero1AdamW([data_parallel(model.named_parameters(), mesh)], mesh.world, **settings)
