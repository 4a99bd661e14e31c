"""Batches for copies of a model whose ranks share weights: as many passes on each copy, and none left waiting.

A weight that isp has cut over ranks of several copies arrives only when all of these ask for it. A copy that has no
text left, or that gave up over an error in its text, would leave the others in the middle of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from evo_core.parallel.collectives import failing_together

if TYPE_CHECKING:
    from evo_core.data import Batch
    from evo_core.parallel.mesh import Axis


def in_step(
    batches: Iterator[Batch], at_once: int, *, empty: Batch, copies: Axis, device: torch.device | str
) -> Iterator[list[Batch]]:
    """A copy's batches in runs for `Passes.forward`; of the same number, in as many runs, on each copy.

    Before each run the copies agree on its length with one message of two numbers.

    Args:
        batches: of this copy of the model; those of another may be fewer or more.
        at_once: the most batches of a run.
        empty: stands for a batch where another copy has more; it has no targets, so it counts for nothing.
        copies: one rank of each copy; every rank of all copies must go through this.
        device: of the group's messages.

    Raises:
        UserError: a copy could not read its batches; on every rank.
        RankFailed: the same, where that was no user's mistake.
    """
    error: Exception | None = None
    while True:
        some: list[Batch] = []
        try:
            some = list(islice(batches, at_once))
        except Exception as caught:
            error = caught
        found = torch.tensor([len(some), int(error is not None)], device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=copies.group)
        most, failed = found.tolist()
        if failed:
            with failing_together(copies.group):
                if error is not None:
                    raise error
        if not most:
            return
        yield some + [empty] * (most - len(some))
