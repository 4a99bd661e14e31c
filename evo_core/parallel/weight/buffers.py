"""Memory for weights that are gathered."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


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
        self._pool = pool
        self._kept: defaultdict[tuple[int, torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
        self.made = self.nbytes = self.peak = 0

    def take(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """A contiguous tensor of that shape, of the type and on the device of another."""
        kept = self._kept[math.prod(shape), like.dtype, like.device]
        if kept:
            return kept.pop().view(*shape)
        buffer = like.new_empty(shape)
        self.made += 1
        self.nbytes += buffer.nbytes
        self.peak = max(self.peak, self.nbytes)
        return buffer

    def give_back(self, buffer: Tensor) -> None:
        """What `take` gave: whoever does so reads it no more."""
        if self._pool:
            self._kept[buffer.numel(), buffer.dtype, buffer.device].append(buffer)
        else:
            self.nbytes -= buffer.nbytes
