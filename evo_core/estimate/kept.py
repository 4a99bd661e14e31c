"""What autograd keeps for the backward pass."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from evo_core.parallel.weight.gathering import in_backward


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
        self._again: list[saved_tensors_hooks] = []
        self.now = self.peak = self._before = self._top = 0

    @contextmanager
    def counting(self, blocks: Iterable[nn.Module]) -> Iterator[None]:
        """Count what is saved in the block.

        Args:
            blocks: what may run again in the backward pass, where hooks of its own take what it saves.
        """
        handles: list[RemovableHandle] = []
        for block in blocks:
            handles.append(block.register_forward_pre_hook(lambda *_: self._runs_again()))
            handles.append(block.register_forward_hook(lambda *_: self._ran_again(), always_call=True))
        try:
            with saved_tensors_hooks(self._saved, _unpacked):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _runs_again(self) -> None:
        if not in_backward():
            return
        keep, give = torch._C._autograd._top_saved_tensors_default_hooks(False)

        def noted(tensor: Tensor) -> Any:
            self._note(tensor)
            return keep(tensor)

        hooks = saved_tensors_hooks(noted, give)
        hooks.__enter__()
        self._again.append(hooks)

    def _ran_again(self) -> None:
        if in_backward():
            self._again.pop().__exit__()

    def _note(self, tensor: Tensor) -> None:
        """Count a storage until its memory goes: who holds it is not known."""
        where, storage = key(tensor), tensor.untyped_storage()
        if where in self._holders or self._is_left_out(tensor):
            return
        size = storage.nbytes()
        self.add(where, size)
        weakref.finalize(storage, self.drop, where, size)

    def _saved(self, tensor: Tensor) -> Tensor | _Holder:
        return tensor if self._is_left_out(tensor) else _Holder(self, tensor)

    def lap(self) -> tuple[int, int]:
        """Since the last call, by how many bytes there were more at most, and are now."""
        found = self._top - self._before, self.now - self._before
        self._before = self._top = self.now
        return found

    def add(self, where: int, size: int) -> None:
        """One more holder of a storage."""
        self._holders[where] += 1
        if self._holders[where] == 1:
            self.now += size
            self.peak, self._top = max(self.peak, self.now), max(self._top, self.now)

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
