"""What a rank sees of a few steps of training: the numbers that are logged, and its share of each gradient."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from evo_core.checkpoint import TrainState
from evo_core.data import Prefetch, open_source
from evo_core.optim.protocol import Optimizer
from evo_core.parallel.mesh import Mesh, make_mesh
from evo_core.placement import Placement
from evo_core.train.checkpointing import Asked
from evo_core.train.optimizer import make_optimizer
from evo_core.train.run import make_model
from evo_core.train.step import TrainStep
from evo_core.train.throughput import Throughput

if TYPE_CHECKING:
    from evo_core.config import TrainConfig
    from evo_core.optim.zero1 import Zero1AdamW
    from evo_core.parallel.degrees import Degrees

Share = tuple[np.ndarray, Placement]
"""What a rank holds of one gradient: the local tensor, and where it lies in the whole one."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Seen:
    """One step, as one rank sees it.

    Attributes:
        numbers: ``loss`` and ``grad_norm``, then what else the log has of it (``acc``, ``perplexity``, ``loss/en``, …).
        shares: of the gradients before clipping, by parameter name.
    """

    numbers: Mapping[str, float]
    shares: Mapping[str, Share]


class _Watched:
    """An optimizer whose gradients are kept before each update."""

    def __init__(self, optimizer: Zero1AdamW) -> None:
        self._optimizer = optimizer
        self.shares: dict[str, Share] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def step(self, lr: float, beta2: float) -> bool:
        gradients = self._optimizer.gradients()
        self.shares = {name: (part.local.numpy().copy(), part.placement) for name, part in gradients.items()}
        return self._optimizer.step(lr, beta2)


def measure(cfg: TrainConfig) -> list[Seen]:
    """Train a job on the ranks of the default group, from first weights to its last step; every rank must call it."""
    mesh = mesh_of(cfg)
    return steps_of(cfg, mesh, model_of(cfg, mesh))


def mesh_of(cfg: TrainConfig) -> Mesh:
    """The ranks of the default group as the job lays them out."""
    return _mesh(cfg.degrees(torch.distributed.get_world_size()))


def model_of(cfg: TrainConfig, mesh: Mesh) -> nn.Module:
    """What this rank holds of the job's model, with first weights."""
    return make_model(cfg, mesh, _CPU, drawn=True)


def steps_of(cfg: TrainConfig, mesh: Mesh, model: nn.Module) -> list[Seen]:
    """All steps of a job with a model of it; every rank must call it."""
    optimizer = _Watched(cast("Zero1AdamW", make_optimizer(cfg, model, mesh)))
    data = open_source(cfg, dp_rank=mesh.data.rank, dp_size=mesh.data.size, tensor=mesh.tensor)
    speed = Throughput.of(cfg, world_size=mesh.world.size, dp=mesh.data.size)
    step = TrainStep(cfg, mesh, model, cast("Optimizer", optimizer), speed=speed, types=data.types, device=_CPU)
    state, seen = TrainState(), []
    with Prefetch(data, 0, cfg.data.total_steps, workers=0, tensor=mesh.tensor) as batches:
        for state.step in range(cfg.data.total_steps):
            measured = step.train(batches.batch(state.step), state, Asked(), began=0.0).measured
            assert measured is not None  # only what is skipped has none
            numbers = {"loss": measured.loss, "grad_norm": measured.grad_norm, **measured.by_type}
            seen.append(Seen(numbers, optimizer.shares))
    return seen


@functools.cache
def _mesh(degrees: Degrees) -> Mesh:
    """Made once in the life of a rank: each mesh holds connections."""
    return make_mesh(degrees)
