"""Bytes that a rank holds for training, by what they are: counted in memory, and as docs/training.md states them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from evo_core.optim.zero1 import Zero1AdamW

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
KINDS = ("parameters", "gradients", "master values and moments", "buffer")


def counted(model: nn.Module, optimizer: Zero1AdamW) -> dict[str, int]:
    """What this repository's optimizer and its model hold, after a step."""
    gradients = [grads for bucket in optimizer.buckets for grads in (bucket.grads, bucket.grad)]
    states = [optimizer.master, optimizer.exp_avg, optimizer.exp_avg_sq]
    found = storages({"states": states, "parameters": model.parameters(), "gradients": gradients})
    # Parameters that are views of their master values are counted as what they are, parameters.
    shared = sum(slot.param.nbytes for bucket in optimizer.buckets if bucket.shared for slot in bucket.slots)
    sizes = (found["parameters"] + shared, found["gradients"], found["states"] - shared, optimizer.publishing.nbytes)
    return dict(zip(KINDS, sizes, strict=True))


def storages(kinds: dict[str, Iterable[Tensor]]) -> dict[str, int]:
    """Bytes of the memory that tensors lie in, each piece of it counted once, with the first kind that has it."""
    seen: set[int] = set()
    found = {}
    for kind, tensors in kinds.items():
        memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        found[kind] = sum(size for where, size in memory.items() if where not in seen)
        seen.update(memory)
    return found


def documented(elements: int, zero: int, dtype: torch.dtype, gathered: int) -> dict[str, float]:
    """What the page's table states, in bytes.

    Args:
        elements: of the parameters here.
        zero: ranks that share a copy of the states.
        dtype: of the parameters.
        gathered: elements that are gathered at once.
    """
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines() if "|" in line]
    cells = {row[0]: row[1:] for row in rows if row[0] in KINDS and row[1].startswith("`")}
    column = 0 if zero > 1 else 2 if dtype == torch.float32 else 1
    names = {"P": elements, "Z": zero, "A": gathered, "b": dtype.itemsize}
    return {kind: float(eval(_expression(cells[kind][column]), {"__builtins__": {}}, names)) for kind in KINDS}


def _expression(cell: str) -> str:
    found = re.fullmatch(r"`([\dPZAb */+]+)`", cell)
    assert found is not None, f"no formula: {cell}"
    return found[1]
