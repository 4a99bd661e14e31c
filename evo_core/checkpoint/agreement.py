"""Before anything is written: do all ranks mean the same tensors, and do their pieces make up each of them?

A checkpoint holds one value under each name. Where ranks that should hold the same one do not (replicas that have
drifted apart, a buffer that each rank updates by itself, a fault in how a tensor is cut), writing either would lose the
other without a word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from evo_core.checkpoint.checksum import checksums, combined
from evo_core.checkpoint.writers import Cut
from evo_core.errors import CheckpointError
from evo_core.parallel.collectives import gather_on_first, on_first
from evo_core.placement import Placed, Ranks, Rectangle, Sizes, tiling_fault

_SHOWN = 3
"""Faults that the error spells out."""

_Held = tuple[Sizes, Sizes, Ranks, int | None]
"""A piece that a rank holds: offsets, sizes, the ranks that hold it, as this one says, and where these are several its
checksum. Plain tuples, for rank 0 of many gets a hundred thousand."""


class Described(NamedTuple):
    """What a rank has of one tensor."""

    shape: Sizes
    dtype: str
    pieces: list[_Held]


def check_agreement(described: Mapping[str, Described], group: dist.ProcessGroup | None = None) -> None:
    """Compare what all ranks are about to write under the same names; every rank must call it.

    Args:
        described: what this rank has (see `Description`); it goes to rank 0 in one message.
        group: all ranks, in their order; None is the default group.

    Raises:
        CheckpointError: they differ, overlap or leave a hole; on every rank, naming the tensors and the ranks.
    """
    everybody = gather_on_first(described, group)
    on_first(lambda: _compare(everybody), group)


_Key = tuple[str, Sizes]
"""Name, and where a part lies: its offsets."""


class Description:
    """What a rank has of each tensor: shape, type and rectangles, and checksums of the pieces that several ranks hold.

    It begins while the tensors stand still, and reads what others write. What this rank writes it may read later, from
    copies.

    Args:
        tensors: what the rank has.
        shared_out: their parts.
        rank: this one.
    """

    def __init__(self, tensors: Mapping[str, Placed], shared_out: Cut, rank: int) -> None:
        self._kinds = {n: (each.placement.shape, str(each.local.dtype)) for n, each in tensors.items()}
        self._pieces: dict[str, list[tuple[Rectangle, Ranks, list[_Key]]]] = {name: [] for name in tensors}
        self._later: set[_Key] = set()
        now: dict[_Key, Tensor] = {}
        for name, each in tensors.items():
            for piece in each.placement.pieces:
                parts = shared_out[name][piece.where] if len(piece.ranks) > 1 else []
                self._pieces[name].append((piece.where, piece.ranks, [(name, p.where.offsets) for p in parts]))
                for part in parts:
                    # A GPU makes other checksums than the host, so it makes all; nothing waits for them.
                    if part.writer == rank and each.local.device.type == "cpu":
                        self._later.add((name, part.where.offsets))
                    else:
                        now[name, part.where.offsets] = part.values
        self._now, self._numbers = list(now), checksums(list(now.values()))

    def complete(self, own: Mapping[str, Iterable[tuple[Rectangle, Tensor]]]) -> dict[str, Described]:
        """All of it.

        Args:
            own: by name, what this rank writes, as it was at the beginning.
        """
        parts = {(name, where.offsets): values for name, each in own.items() for where, values in each}
        later = [key for key in parts if key in self._later]
        numbers = dict(zip(self._now, self._numbers(), strict=True))
        numbers |= zip(later, checksums([parts[key] for key in later])(), strict=True)
        # One object for equal ranks: a pickle holds it once, and not the numbers of a thousand ranks for each piece.
        same: dict[Ranks, Ranks] = {}
        described = {}
        for name, pieces in self._pieces.items():
            held: list[_Held] = []
            for where, ranks, keys in pieces:
                value = combined(numbers[key] for key in keys) if len(ranks) > 1 else None
                held.append((where.offsets, where.sizes, same.setdefault(ranks, ranks), value))
            shape, dtype = self._kinds[name]
            described[name] = Described(shape, dtype.removeprefix("torch."), held)
        return described


def _compare(everybody: Sequence[Mapping[str, Described]]) -> None:
    by_name: dict[str, dict[int, Described]] = defaultdict(dict)
    for rank, tensors in enumerate(everybody):
        for name, tensor in tensors.items():
            by_name[name][rank] = tensor
    # Ranks that hold other tensors share them out in other parts: of these the values say nothing.
    faults = [fault for name, there in by_name.items() for fault in _misfits(name, there)]
    faults = faults or [fault for name, there in by_name.items() for fault in _differences(name, there)]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CheckpointError(
            f"no checkpoint can be saved: {'; '.join(faults[:_SHOWN])}{more}",
            hint="go on from the checkpoint before; if it happens again, a machine or the model's code is at fault",
        )


def _misfits(name: str, there: Mapping[int, Described]) -> Iterator[str]:
    """What is wrong with the shape and pieces of one tensor, given what each rank has of it."""
    kinds = _by_value({rank: f"{list(tensor.shape)} {tensor.dtype}" for rank, tensor in there.items()})
    if len(kinds) > 1:
        yield f"{name} is {_differing(kinds)}"
        return
    held: dict[tuple[Sizes, Sizes], list[tuple[int, Ranks]]] = defaultdict(list)
    for rank, tensor in there.items():
        for offsets, sizes, ranks, _ in tensor.pieces:
            held[offsets, sizes].append((rank, ranks))
    shape = next(iter(there.values())).shape
    if fault := tiling_fault(shape, (Rectangle(*where) for where in held)):
        yield f"{name} is not whole: {fault}"
        return
    for where, holders in held.items():
        holding = tuple(rank for rank, _ in holders)
        if said := {ranks for _, ranks in holders} - {holding}:
            yield f"{name}{Rectangle(*where)} is held by {_ranks(holding)}, and said to be by {_ranks(min(said))}"


def _differences(name: str, there: Mapping[int, Described]) -> Iterator[str]:
    """Pieces of one tensor that are not the same on all ranks that hold them."""
    held: dict[tuple[Sizes, Sizes], dict[int, int | None]] = defaultdict(dict)
    for rank, tensor in there.items():
        for offsets, sizes, _, value in tensor.pieces:
            held[offsets, sizes][rank] = value
    for holders in held.values():
        values = _by_value(holders)
        if len(values) > 1:
            groups = " than on ".join(_ranks(group) for group in values.values())
            yield f"{name} has other values on {groups}"


def _by_value(values: Mapping[int, Any]) -> dict[Any, list[int]]:
    """The ranks that have each value."""
    ranks: dict[Any, list[int]] = defaultdict(list)
    for rank, value in values.items():
        ranks[value].append(rank)
    return dict(ranks)


def _differing(values: Mapping[Any, Sequence[int]]) -> str:
    return " and ".join(f"{value} on {_ranks(ranks)}" for value, ranks in values.items())


def _ranks(ranks: Iterable[int]) -> str:
    """``rank 3``, ``ranks 0, 1, 2``; of many the first ones."""
    ranks = list(ranks)
    listed = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}"
