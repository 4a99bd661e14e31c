"""Weights that torch's fully sharded data parallel fetches, and what it sends: it calls collectives by itself, which
`evo_core.parallel.collectives` does not count, so that they are seen here by their operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from evo_core.parallel.collectives import Traffic
from evo_core.parallel.mesh import Mesh

_GATHER = torch.ops.c10d._allgather_base_.default
_SCATTER = torch.ops.c10d._reduce_scatter_base_.default
_REDUCE = torch.ops.c10d.allreduce_.default


class Fetched(TorchDispatchMode):
    """Counts while it is entered. Of a ZeRO group nobody else gathers, and of replicas nobody else sums.

    Args:
        mesh: whose ZeRO groups share parameters.
        traffic: where messages are noted.

    Attributes:
        whole: storages of whole parameters, by `Kept`'s key; empty ones while they are not fetched.
        peak: most bytes of whole parameters, and of messages on the way to them, at a time.
    """

    def __init__(self, mesh: Mesh, traffic: Traffic) -> None:
        super().__init__()
        self._zero, self._replica, self._traffic = mesh.zero, mesh.replica, traffic
        self.whole: dict[int, torch.UntypedStorage] = {}
        self._messages: list[tuple[StorageWeakRef, int]] = []
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry out an operation, and count it."""
        kwargs = kwargs or {}
        if func is _GATHER and _is(args[2], self._zero.group):
            self._traffic.note("all_gather", args[0].nbytes, self._zero.group)
            storage = args[0].untyped_storage()
            self._messages.append((StorageWeakRef(storage), storage.nbytes()))
            self._measure()
        elif func is _SCATTER and _is(args[2], self._zero.group):
            self._traffic.note("reduce_scatter", args[1].nbytes, self._zero.group)
        elif func is _REDUCE and self._replica.size > 1 and _is(args[1], self._replica.group):
            self._traffic.note("all_reduce", 2 * sum(tensor.nbytes for tensor in args[0]), self._replica.group)
        result = func(*args, **kwargs)
        if str(func) == "fsdp.split_with_sizes_copy.default":
            for tensor in kwargs["out"]:
                self.whole[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            self._measure()
        return result

    def _measure(self) -> None:
        self._messages = [(there, size) for there, size in self._messages if not there.expired()]
        whole = sum(storage.nbytes() for storage in self.whole.values())
        self.peak = max(self.peak, whole + sum(size for _, size in self._messages))


def _is(boxed: torch.ScriptObject, group: dist.ProcessGroup) -> bool:
    return dist.ProcessGroup.unbox(boxed).group_name == group.group_name
