"""Weights that are no numbers: one NaN makes every answer of a model NaN, or the same token for ever."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from evo_core.errors import CheckpointError

log = logging.getLogger(__name__)


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The tensors, of any shape, with NaN or infinite elements, and how many of these: ``norm.weight (3 of 64)``."""
    found = []
    for name, tensor in tensors:
        if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
            found.append(f"{name} ({tensor.numel() - int(finite.sum())} of {tensor.numel()})")
    return found


def check_finite(tensors: Iterable[tuple[str, Tensor]], folder: Path, *, allowed: bool = True) -> None:
    """Say which tensors of a folder, of any shape, hold NaN or infinite elements.

    Args:
        allowed: only warn.

    Raises:
        CheckpointError: there are some, and they are not allowed.
    """
    found = non_finite(tensors)
    if not found:
        return
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    message = f"has NaN or infinite weights: {', '.join(found[:5])}{more}"
    if not allowed:
        raise CheckpointError(message, file=folder, hint="--allow-non-finite takes them as they are")
    log.warning("%s %s", folder, message)
