"""What autograd keeps for the backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Kept:
    """Bytes of the storages that autograd has saved something of, each counted once, for as long as it is saved.

    Args:
        is_left_out: whether a storage is not to be counted, by its `key`.

    Attributes:
        now: bytes that are kept.
        peak: the most that were.
    """

    def __init__(self, is_left_out: Callable[[Tensor], bool]) -> None:
        self._is_left_out = is_left_out
        self._holders: Counter[int] = Counter()
        self.now = self.peak = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is saved in the block."""
        with saved_tensors_hooks(self._saved, _unpacked):
            yield

    def _saved(self, tensor: Tensor) -> Tensor | _Holder:
        return tensor if self._is_left_out(tensor) else _Holder(self, tensor)

    def add(self, where: int, size: int) -> None:
        """One more holder of a storage."""
        self._holders[where] += 1
        if self._holders[where] == 1:
            self.now += size
            self.peak = max(self.peak, self.now)

    def drop(self, where: int, size: int) -> None:
        """One holder of it less."""
        self._holders[where] -= 1
        if not self._holders[where]:
            del self._holders[where]
            self.now -= size


class _Holder:
    """What autograd keeps in a tensor's place: it goes when the graph lets go of it."""

    def __init__(self, kept: Kept, tensor: Tensor) -> None:
        self.tensor, self._kept = tensor, kept
        self._storage = key(tensor), tensor.untyped_storage().nbytes()
        kept.add(*self._storage)

    def __del__(self) -> None:
        self._kept.drop(*self._storage)


def _unpacked(saved: Any) -> Tensor:
    tensor: Tensor = saved.tensor if isinstance(saved, _Holder) else saved
    return tensor


def key(tensor: Tensor) -> int:
    """Of the storage of a tensor, while it is there; tensors without memory have one too."""
    return tensor.untyped_storage()._cdata
