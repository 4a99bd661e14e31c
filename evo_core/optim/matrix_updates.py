"""The matrices that this rank updates by Muon: their running means, and an update of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evo_core.optim.bucket import Bucket
from evo_core.optim.muon import Matrices, Muon, update
from evo_core.optim.slots import Slot


class MatrixUpdates:
    """Muon over what a rank owns of buckets whose parameters each have one owner.

    Args:
        buckets: of matrices, attached.
        muon: how they are updated.

    Attributes:
        momentum: [elements] the running means of all, bucket behind bucket; empty where there are no buckets.
    """

    def __init__(self, buckets: Sequence[Bucket], muon: Muon) -> None:
        self._muon = muon
        widths = [bucket.width for bucket in buckets]
        ends = itertools.accumulate(widths)
        self.momentum = buckets[0].master.new_zeros(sum(widths)) if buckets else torch.zeros(0)
        parts = (self.momentum[end - width : end] for width, end in zip(widths, ends, strict=True))
        self._parts = list(zip(buckets, parts, strict=True))

    def momentum_of(self, bucket: Bucket) -> Tensor:
        """The running means of a bucket, [width] as its master values."""
        return next(momentum for each, momentum in self._parts if each is bucket)

    @torch.no_grad()
    def update(self, lr: float, weight_decay: float) -> None:
        """Update all master values from the gradients beside them.

        Args:
            lr: AdamW's, of this update.
            weight_decay: of the groups that decay.
        """
        for bucket, slot, matrices, momentum in self._owned():
            update(
                slot.placed(bucket.master).local,
                slot.placed(bucket.grad).local,
                slot.placed(momentum).local,
                matrices,
                self._muon,
                lr=lr * self._muon.lr_ratio,
                weight_decay=weight_decay if bucket.group.decays else 0.0,
            )

    @property
    def operations(self) -> float:
        """Of the products of an update on this rank, one of m x k and k x n as 2 m k n."""
        steps = self._muon.ns_steps
        return sum(matrices.operations(slot.param.shape[1], steps) for _, slot, matrices, _ in self._owned())

    def _owned(self) -> Iterator[tuple[Bucket, Slot, Matrices, Tensor]]:
        """Each matrix that this rank has, with its bucket and the running means of that."""
        for bucket, momentum in self._parts:
            assert bucket.group.matrices is not None
            for slot in bucket.slots:
                if slot.share.numel:
                    yield bucket, slot, bucket.group.matrices[slot.name], momentum
