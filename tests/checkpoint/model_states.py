"""Models and their optimizers at any layout, whose every number is known, saved and loaded."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from evo_core.checkpoint import TrainState, load, save
from evo_core.checkpoint.tensors import filling, model_tensors
from evo_core.config import TrainConfig
from evo_core.errors import CheckpointError
from evo_core.optim.fsdp_adamw import FsdpAdamW
from evo_core.optim.groups import groups_of
from evo_core.optim.zero1 import Zero1AdamW
from evo_core.parallel.apply import build_parallel
from evo_core.parallel.pipeline.placing import Placing
from evo_core.placement import Placed
from evo_core.weights.job import configuration
from tests.model.configs import TINY
from tests.parallel.meshes import mesh_of
from tests.weights.models import SHAPES


class Layout(NamedTuple):
    """Tensor ranks, ranks of each ZeRO group, and stages: ranks of the pipeline and how many each of them has.

    With `is_v` the stages come back to the first rank. With isp there are `weight` ranks that share each weight, and
    so many ZeRO groups of those that hold the same part of it. With fsdp a ZeRO group shares parameters too. Of a
    mixture of experts so many data ranks share them.
    """

    tensor: int
    zero: int
    pipeline: int = 1
    chunks: int = 1
    is_v: bool = False
    weight: int = 0
    groups: int = 1
    fsdp: bool = False
    expert: int = 1

    @property
    def ranks(self) -> int:
        return (self.weight or self.tensor) * self.zero * self.groups * self.pipeline

    @property
    def parallel(self) -> dict[str, Any]:
        """The block that asks for it."""
        stages = {"pipeline": self.pipeline, "expert": self.expert}
        if not self.weight:
            return {"tensor": self.tensor, **stages}
        return {"tensor": {"size": self.tensor, "mode": "isp"}, "weight": {"size": self.weight}, **stages}

    def __str__(self) -> str:
        stages = f"x{self.pipeline}x{self.chunks}{'v' * self.is_v}" if self.pipeline > 1 else ""
        weights = f"w{self.weight}x{self.groups}" if self.weight else ""
        experts = f"e{self.expert}" if self.expert > 1 else ""
        return f"{self.tensor}x{self.zero}{stages}{weights}{experts}" + f"fsdp{self.groups}" * self.fsdp


def config(family: str, **changes: Any) -> TrainConfig:
    """Narrow weights, so that there are master values, beside norms as wide as these."""
    own = {"model_type": family, "vocab_size": 64, "num_layers": 1, "dtype": "torch.bfloat16", "use_fp32_norm": True}
    return configuration({**TINY, **SHAPES[family], **own, **changes}, Path("test"))


def state_of(cfg: TrainConfig, layout: Layout) -> tuple[nn.Module, Zero1AdamW | FsdpAdamW]:
    zero: Any = {"size": layout.zero, "fsdp": True} if layout.fsdp else layout.zero
    mesh = mesh_of(zero, experts=cfg.model.num_experts, **layout.parallel)
    placing = Placing(layout.pipeline, layout.chunks, layout.is_v)
    model = build_parallel(cfg.model, mesh, "cpu", placing=placing)
    for parameter in model.parameters():
        nn.init.constant_(parameter, -7)
    groups = groups_of(model, mesh)
    return model, FsdpAdamW(model, groups, mesh) if mesh.shards else Zero1AdamW(groups, mesh.world)


def truth(name: str, placed: Placed) -> Tensor:
    """The whole tensor of a name, wherever it is asked for; a narrow one is its master value, rounded."""
    seed = f"master.{name}" if placed.local.dtype == torch.bfloat16 else name
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    return torch.randn(placed.placement.shape, generator=generator).to(placed.local.dtype)


def held(model: nn.Module, optimizer: Zero1AdamW | FsdpAdamW) -> Iterator[tuple[str, Placed]]:
    yield from model_tensors(model).items()
    yield from optimizer.state().items()


def saved(root: Path, family: str, layout: Layout, **changes: Any) -> Path:
    """Write a checkpoint of what `truth` says, whatever the layout."""
    cfg = config(family, **changes)
    model, optimizer = state_of(cfg, layout)
    with torch.no_grad(), filling(model) as tensors:
        for name, placed in tensors.items():
            placed.fill(truth(name, placed))
    for name, placed in optimizer.state().items():
        placed.fill(truth(name, placed))
    return save(root / family / str(layout), cfg, model, optimizer.state(), TrainState(step=1))


def differing(root: Path, family: str, written: Layout, layout: Layout, **changes: Any) -> list[str]:
    """Load into tensors of other numbers; the names of those that are not bit for bit what belongs there."""
    model, optimizer = state_of(config(family, **changes), layout)
    load(root / family / str(written) / "1", model, optimizer)
    wrong = []
    for name, placed in held(model, optimizer):
        whole = truth(name, placed)
        wrong += [name for piece, view in placed.pieces() if not torch.equal(view, piece.where.of(whole))]
    return wrong


def said_of_drift(folder: Path, cfg: TrainConfig, layout: Layout, name: str) -> str:
    """What a save into the folder is refused with where the last of its ranks has another number in the last row of a
    tensor, which others hold too."""
    model, optimizer = state_of(cfg, layout)
    tensors = dict(held(model, optimizer))
    if dist.get_rank() == layout.ranks - 1:
        tensors[name].local[-1].view(-1)[-1] += 1
    with pytest.raises(CheckpointError) as caught:
        save(folder, cfg, model, optimizer.state(), TrainState(step=1))
    return str(caught.value)
