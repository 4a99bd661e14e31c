"""torch's fully sharded data parallelism (FSDP2, `fully_shard`) of this repository's decoder: ZeRO's third stage."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from evo_core.model import Decoder


def sharded(model: Decoder, mesh: DeviceMesh) -> nn.Module:
    """A whole decoder, changed in place: sharded over the ranks of a mesh of one dimension, block by block.

    While a block computes the next one's weights are asked for, forward and backward.
    """
    blocks: list[Any] = [fully_shard(block, mesh=mesh) for block in model.blocks.values()]
    fully_shard(model, mesh=mesh)
    for before, after in itertools.pairwise(blocks):
        before.set_modules_to_forward_prefetch([after])
        after.set_modules_to_backward_prefetch([before])
    return model


def optimizer(model: nn.Module, lr: float = 0.0) -> Callable[[], float]:
    """What clips the gradients, updates the parameters by torch's fused AdamW, and returns the norm before."""
    parameters = list(model.parameters())
    adamw = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)

    def update() -> float:
        norm: Tensor = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    return update


def held(model: nn.Module) -> int:
    """Bytes of the parameters here."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in model.parameters())
