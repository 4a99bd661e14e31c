"""Which bytes of this rank's memory the model and its optimizer hold, part by part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from evo_core.placement import local_of

if TYPE_CHECKING:
    from evo_core.optim.protocol import Optimizer

Spans = dict[int, set[tuple[int, int]]]


def held_bytes(model: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """Bytes by part. What two parts share is counted for the first of them: weights that are views of their own master
    values are parameters."""
    own = optimizer.held()
    params = [local_of(param.detach()) for param in model.parameters()]
    gradients = [local_of(param.grad) for param in model.parameters() if param.grad is not None]
    parts: dict[str, Iterable[torch.Tensor]] = {
        "parameters": params,
        "buffers": model.buffers(),
        **own,
        "gradients": [*gradients, *own.get("gradients", ())],
    }
    spans: Spans = defaultdict(set)
    held, before = {}, 0
    for name, tensors in parts.items():
        for tensor in tensors:
            _add(spans, tensor)
        covered = sum(map(_covered, spans.values()))
        held[name], before = covered - before, covered
    return held


def table(held: dict[str, int], step: int, rank: int, *, peak: int | None, peak_of: str) -> str:
    """The parts as text.

    Args:
        held: bytes by part.
        peak: bytes of `peak_of`; None where nobody knows.
    """
    lines = [*held.items(), ("together", sum(held.values()))]
    if peak is not None:
        lines.append((peak_of, peak))
    width = max(len(name) for name, _ in lines)
    rows = [f"{name:<{width}} {size:>18,} {size / 2**20:>12.1f} MiB" for name, size in lines]
    return "\n".join([f"bytes in memory after step {step} on rank {rank}", "", *rows, ""])


def _add(spans: Spans, tensor: torch.Tensor) -> None:
    if tensor.numel():
        reach = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        size = tensor.element_size()
        start = int(tensor.storage_offset()) * size
        # By the storage and not its address, which tensors without memory (evo_core/estimate) have none of.
        spans[tensor.untyped_storage()._cdata].add((start, start + reach * size))


def _covered(spans: set[tuple[int, int]]) -> int:
    """Bytes that lie in at least one of the spans."""
    covered = end = 0
    for start, stop in sorted(spans):
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered
