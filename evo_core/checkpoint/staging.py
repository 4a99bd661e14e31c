"""What a rank writes of a checkpoint, set apart from tensors that training goes on to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from evo_core.checkpoint.agreement import Described, Description
from evo_core.checkpoint.tensors import own_tensors
from evo_core.checkpoint.writers import cut
from evo_core.placement import Placed, Sizes

if TYPE_CHECKING:
    from evo_core.checkpoint.parts import Parts

T = TypeVar("T")


@dataclass(frozen=True)
class Staged:
    """The tensors of a checkpoint, as far as this rank writes them.

    Attributes:
        parts: by part of the checkpoint, what it writes.
        description: what it has of each, begun.
    """

    parts: Mapping[str, Mapping[str, Parts]]
    description: Description

    @cached_property
    def described(self) -> Mapping[str, Described]:
        """What it has of each, to be compared with the other ranks: by ``<part of the checkpoint>/<name>``."""
        return self.description.complete({name: each.rectangles() for name, each in _flat(self.parts).items()})


def stage(tensors: Mapping[str, Mapping[str, Placed]], copies: HostCopies | None = None) -> Staged:
    """Find out what this rank writes.

    Args:
        tensors: by part of the checkpoint and name.
        copies: where to copy it; None leaves it where it is, and it must not change before it is written.
    """
    shared_out = {part: cut(named) for part, named in tensors.items()}
    description = Description(_flat(tensors), _flat(shared_out), dist.get_rank())
    parts = {part: own_tensors(named, shared_out[part]) for part, named in tensors.items()}
    return Staged(parts if copies is None else copies.of(parts), description)


def _flat(parts: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """By ``<part of the checkpoint>/<name>``."""
    return {f"{part}/{name}": each for part, named in parts.items() for name, each in named.items()}


class HostCopies:
    """Memory for what a rank writes, used again for every checkpoint: it has the same tensors each time."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str, Sizes], Tensor] = {}

    def of(self, parts: Mapping[str, Mapping[str, Parts]]) -> dict[str, dict[str, Parts]]:
        """The same with all values copied to the CPU; those of the checkpoint before are overwritten."""
        copied = {
            part: {name: self._copied(part, name, each) for name, each in named.items()}
            for part, named in parts.items()
        }
        if any(buffer.is_pinned() for buffer in self._buffers.values()):
            torch.cuda.synchronize()
        return copied

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def _copied(self, part: str, name: str, parts: Parts) -> Parts:
        from evo_core.checkpoint.parts import Parts

        copies = ((where, self._copy((part, name, where.offsets), values)) for where, values in parts.rectangles())
        return Parts(tuple(parts.shape), parts.dtype, copies)

    def _copy(self, key: tuple[str, str, Sizes], values: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != values.shape or buffer.dtype != values.dtype:
            # To pinned memory alone a GPU copies while the next copies are being asked for.
            buffer = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            self._buffers[key] = buffer
        return buffer.copy_(values, non_blocking=True)
