"""What a rank writes of a checkpoint, set apart from tensors that training goes on to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evo_core.checkpoint.agreement import Described, describe
from evo_core.checkpoint.tensors import own_tensors
from evo_core.placement import Placed, Sizes

if TYPE_CHECKING:
    from evo_core.checkpoint.parts import Parts


@dataclass(frozen=True)
class Staged:
    """The tensors of a checkpoint, as far as this rank writes them.

    Attributes:
        described: what it has of each, to be compared with the other ranks: by part of the checkpoint and name.
        parts: by part of the checkpoint, what it writes.
    """

    described: Mapping[str, Described]
    parts: Mapping[str, Mapping[str, Parts]]


def stage(tensors: Mapping[str, Mapping[str, Placed]], copies: HostCopies | None = None) -> Staged:
    """Find out what this rank writes.

    Args:
        tensors: by part of the checkpoint and name.
        copies: where to copy it; None leaves it where it is, and it must not change before it is written.
    """
    described = describe(
        {f"{part}/{name}": placed for part, named in tensors.items() for name, placed in named.items()}
    )
    parts = {part: own_tensors(named) for part, named in tensors.items()}
    return Staged(described, parts if copies is None else copies.of(parts))


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
