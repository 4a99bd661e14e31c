"""Weights that are no numbers: one NaN makes every answer of a model NaN, or the same token for ever."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evo_core.checkpoint.tensors import model_tensors
from evo_core.errors import CheckpointError
from evo_core.model.cutting import all_stages
from evo_core.parallel.collectives import gather_on_first, on_first
from evo_core.storage.location import Location

log = logging.getLogger(__name__)


def check_finite(tensors: Iterable[tuple[str, Tensor]], folder: Location, *, allowed: bool = True) -> None:
    """Say which tensors of a folder, of any shape, hold NaN or infinite elements.

    Args:
        allowed: only warn.

    Raises:
        CheckpointError: there are some, and they are not allowed.
    """
    found = {name: (wrong, tensor.numel()) for name, tensor in tensors if (wrong := _not_finite(tensor))}
    _tell(found, folder, allowed)


def check_model_finite(model: nn.Module, folder: Location, *, allowed: bool = True) -> None:
    """`check_finite` of a model of which each rank holds a part, or all; every rank must call it.

    Each piece is looked at by one of the ranks that hold it, and the first rank tells of all.

    Args:
        folder: where the weights come from.
        allowed: only warn.

    Raises:
        CheckpointError: as `check_finite`, on every rank.
    """
    tensors, rank = model_tensors(model), dist.get_rank()
    own: Counter[str] = Counter()
    for name, placed in tensors.items():
        own[name] += sum(_not_finite(view) for piece, view in placed.pieces() if piece.owner == rank)
    total: Counter[str] = Counter()
    for each in gather_on_first(+own):
        total += each
    whole = model_tensors(all_stages(model)) if total else {}
    found = {name: (total[name], math.prod(whole[name].placement.shape)) for name in whole if total[name]}
    on_first(lambda: _tell(found, folder, allowed))


def _not_finite(tensor: Tensor) -> int:
    """How many elements of a tensor of any shape are NaN or infinite."""
    if not tensor.is_floating_point() or (finite := torch.isfinite(tensor)).all():
        return 0
    return tensor.numel() - int(finite.sum())


def _tell(found: Mapping[str, tuple[int, int]], folder: Location, allowed: bool) -> None:
    """Name tensors, by how many of how many elements are wrong: ``norm.weight (3 of 64)``."""
    if not found:
        return
    named = [f"{name} ({wrong} of {numel})" for name, (wrong, numel) in found.items()]
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    message = f"has NaN or infinite weights: {', '.join(named[:5])}{more}"
    if not allowed:
        raise CheckpointError(message, file=folder, hint="--allow-non-finite takes them as they are")
    log.warning("%s %s", folder, message)
