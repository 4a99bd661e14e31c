"""What a rank writes of a checkpoint, set apart from tensors that training goes on to change."""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from evo_core.checkpoint.agreement import Described, Description
from evo_core.checkpoint.tensors import own_tensors
from evo_core.checkpoint.writers import cut
from evo_core.cores import cores
from evo_core.placement import Placed

if TYPE_CHECKING:
    from evo_core.checkpoint.parts import Parts

T = TypeVar("T")

_COPIERS = 8
_SMALL, _AT_ONCE = 1 << 19, 4 << 20
"""Bytes that are copied faster than they are handed to a thread, and that a thread copies in one go."""

_PORTABLE = 1
"""cudaHostRegisterPortable: page-locked for every CUDA context of the process."""


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
    """Memory for what a rank writes, used again for every checkpoint: it has the same tensors each time.

    All tensors of a type lie end to end in one buffer. For those of a GPU it is page-locked where it lies: torch's
    allocator of pinned memory would round each buffer up to a power of two.
    """

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, Tensor] = {}

    def of(self, parts: Mapping[str, Mapping[str, Parts]]) -> dict[str, dict[str, Parts]]:
        """The same with all values copied to the CPU; those of the checkpoint before are overwritten."""
        values = [each for named in parts.values() for one in named.values() for _, each in one.rectangles()]
        from_gpu = any(each.is_cuda for each in values)
        self._reserve(values, page_locked=from_gpu)
        taken: Counter[torch.dtype] = Counter()
        with _Copying() as copy:
            copied = {
                part: {name: self._copied(each, taken, copy) for name, each in named.items()}
                for part, named in parts.items()
            }
        if from_gpu:  # to page-locked memory alone it copies while the next copies are being asked for
            torch.cuda.synchronize()
        return copied

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def _reserve(self, values: Iterable[Tensor], *, page_locked: bool) -> None:
        needed: Counter[torch.dtype] = Counter()
        for each in values:
            needed[each.dtype] += each.numel()
        if {dtype: buffer.numel() for dtype, buffer in self._buffers.items()} == needed:
            return
        self._buffers.clear()  # before there are new ones: memory for both may not be there
        for dtype, count in needed.items():
            buffer = torch.empty(count, dtype=dtype)
            if page_locked:
                _lock_pages(buffer)
            self._buffers[dtype] = buffer

    def _copied(self, parts: Parts, taken: Counter[torch.dtype], copy: _Copying) -> Parts:
        from evo_core.checkpoint.parts import Parts

        copies = []
        for where, values in parts.rectangles():
            start = taken[values.dtype]
            taken[values.dtype] += values.numel()
            room = self._buffers[values.dtype][start : taken[values.dtype]].view(values.shape)
            copy(room, values)
            copies.append((where, room))
        return Parts(tuple(parts.shape), parts.dtype, copies)


class _Copying:
    """Copies tensors into memory of the host; all is there when the block ends, but for what a GPU was asked for.

    One core does not use what the memory can give. A rank has one thread for its work where cores are shared out to
    ranks, and the steps wait for this: so it takes all that the rank has.
    """

    def __init__(self) -> None:
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or dist.get_world_size())
        self._pool = ThreadPoolExecutor(max(1, min(_COPIERS, cores() // local_ranks)))
        self._copies: list[Future[Tensor]] = []

    def __enter__(self) -> _Copying:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
        for each in self._copies:
            each.result()

    def __call__(self, room: Tensor, values: Tensor) -> None:
        if values.is_cuda or values.nbytes < _SMALL or values.dim() == 0:
            room.copy_(values, non_blocking=True)
            return
        rows = max(1, _AT_ONCE * len(values) // values.nbytes)
        for part, source in zip(room.split(rows), values.split(rows), strict=True):
            self._copies.append(self._pool.submit(part.copy_, source))


def _lock_pages(buffer: Tensor) -> None:
    """Page-lock the memory of a tensor for as long as the tensor is there."""
    cudart = torch.cuda.cudart()
    torch.cuda.check_error(cudart.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, _PORTABLE))
    # The end of the process frees it anyway, and by then CUDA may be gone.
    weakref.finalize(buffer, cudart.cudaHostUnregister, buffer.data_ptr()).atexit = False
