"""torch's own ZeRO-1 of this repository's decoder: DistributedDataParallel with ZeroRedundancyOptimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

BYTES_OF_MIB = 2**20


def distributed(model: nn.Module, bucket_bytes: int) -> DistributedDataParallel:
    """A whole model whose gradients are views of the messages in which they are summed behind the backward pass."""
    return DistributedDataParallel(model, bucket_cap_mb=bucket_bytes / BYTES_OF_MIB, gradient_as_bucket_view=True)


def optimizer(model: nn.Module, lr: float) -> tuple[ZeroRedundancyOptimizer, Callable[[], None]]:
    """torch's fused AdamW over the tensors of this rank, which broadcasts their values, and what clips and steps."""
    zero = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        zero.step()

    return zero, update
