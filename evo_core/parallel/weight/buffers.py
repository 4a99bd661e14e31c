"""Memory for weights that are gathered."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_Kind = tuple[int, torch.dtype, torch.device]
"""Elements, their type, and where they are."""


class Buffers:
    """Uninitialised tensors, for as long as a weight is whole.

    Args:
        pool: keep what is given back, and hand it out again; else each is made anew.

    Attributes:
        made: how many have been made.
        nbytes: of those that there are: in use, or kept.
        peak: the most bytes that there were.
    """

    def __init__(self, *, pool: bool) -> None:
        self.pool = pool
        self._kept: defaultdict[_Kind, list[Tensor]] = defaultdict(list)
        self._of_kind: Counter[_Kind] = Counter()
        self.made = self.nbytes = self.peak = 0

    def take(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """A contiguous tensor of that shape, of the type and on the device of another."""
        kind = math.prod(shape), like.dtype, like.device
        kept = self._kept[kind]
        return (kept.pop() if kept else self._new(kind)).view(*shape)

    def give_back(self, buffer: Tensor) -> None:
        """What `take` gave: whoever does so reads it no more."""
        if self.pool:
            self._kept[buffer.numel(), buffer.dtype, buffer.device].append(buffer)
        else:
            self.nbytes -= buffer.nbytes

    def reserve(self, wanted: Iterable[tuple[int, Tensor]]) -> None:
        """Make, of a pool, as many as are wanted at a time, if they have not been made.

        Args:
            wanted: the elements of each, and a tensor of its type on its device.
        """
        for kind, count in Counter((numel, like.dtype, like.device) for numel, like in wanted).items():
            for _ in range(count - self._of_kind[kind]):
                self._kept[kind].append(self._new(kind))

    def _new(self, kind: _Kind) -> Tensor:
        numel, dtype, device = kind
        with torch.inference_mode(False):  # training may be given what generation has made
            buffer = torch.empty(numel, dtype=dtype, device=device)
        self.made += 1
        self._of_kind[kind] += 1
        self.nbytes += buffer.nbytes
        self.peak = max(self.peak, self.nbytes)
        return buffer
