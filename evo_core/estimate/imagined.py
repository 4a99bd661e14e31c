"""One rank without the others and without memory: a process group that sends nothing, and tensors that only know their
shapes.

torch has both for its own tests: the "fake" process group, whose collectives return at once, and FakeTensorMode. What
is computed is unknown; what little of it Python code reads (lengths, counts, sums) is known or assumed here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

_READ, _COUNT = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.bincount.default


@contextmanager
def imagined_ranks(world_size: int, rank: int) -> Iterator[None]:
    """A default process group in which this process is one rank and the others are not there; for the block.

    Raises:
        RuntimeError: the process has a default process group already.
    """
    if dist.is_initialized():
        raise RuntimeError("other ranks can be imagined only in a process that has none")
    hook = sys.excepthook  # torch puts one of its own around it each time
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


class Imagined(FakeTensorMode):
    """Tensors that are made in this mode have no memory. Those from outside have; what is made of them alone has too,
    as lengths of documents do.

    A number that is read from a tensor without memory is 1. Tokens are dealt out evenly over experts, and `kept` of
    them find room.

    Args:
        kept: share of the choices of experts, up to 1.
    """

    def __init__(self, kept: float = 1.0) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._kept = kept

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry out an operation."""
        kwargs = kwargs or {}
        if func is _READ and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype).item()
        if func is _COUNT and isinstance(args[0], FakeTensor):
            return self._even(args[0].numel(), args[2] if len(args) > 2 else kwargs["minlength"])
        if kwargs.get("generator") is not None and func._schema.name.endswith("_"):
            return args[0]  # drawn in place
        if not types and _has_tensor(args):  # known ones alone
            return func(*args, **kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _even(self, choices: int, bins: int) -> Tensor:
        """How many of the choices each expert gets, and behind them how many find no room."""
        experts = bins - 1
        each = min(-(-choices // experts), round(choices * self._kept / experts))
        counts = [min(each, choices - number * each) for number in range(experts)]
        return torch.tensor([*counts, choices - sum(counts)])


def _has_tensor(args: Sequence[Any]) -> bool:
    return any(isinstance(arg, Tensor) or (isinstance(arg, list | tuple) and _has_tensor(arg)) for arg in args)
