"""From what each rank holds to whole gradients, with the checks that they are whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evo_core.parity.measure import Seen, Share
from evo_core.placement import Placed, Ranks, Rectangle


class NotWhole(Exception):
    """The ranks' shares do not make a whole: an element that none has, or that two have differently."""


@dataclass(frozen=True)
class Step:
    """One step of a job, whatever the layout.

    Attributes:
        numbers: see `Seen`.
        gradients: whole ones, by parameter name, in the type in which they are accumulated; on one process in the order
            in which backward makes them, from the head down.
    """

    numbers: Mapping[str, float]
    gradients: Mapping[str, Tensor]


def joined(ranks: Sequence[Sequence[Seen]]) -> list[Step]:
    """The steps that all ranks saw together.

    Args:
        ranks: by rank, then by step.

    Raises:
        NotWhole: an element of a gradient is on no rank; two ranks have other bits of it, or of a logged number; or a
            piece is on other ranks than its record says.
    """
    return [_joined(number, step) for number, step in enumerate(zip(*ranks, strict=True))]


def _joined(number: int, seen: Sequence[Seen]) -> Step:
    for rank, other in enumerate(seen):
        for name, value in seen[0].numbers.items():
            if (there := other.numbers.get(name, math.nan)) != value and not (math.isnan(there) and math.isnan(value)):
                raise NotWhole(f"step {number}: {name} is {value!r} on rank 0 and {there!r} on rank {rank}")
    names = dict.fromkeys(name for each in seen for name in each.shares)
    gradients = {}
    for name in names:
        shares = {rank: each.shares[name] for rank, each in enumerate(seen) if name in each.shares}
        try:
            gradients[name] = whole(shares)
        except NotWhole as error:
            raise NotWhole(f"step {number}: {name}: {error}") from None
    return Step(seen[0].numbers, gradients)


def whole(shares: Mapping[int, Share]) -> Tensor:
    """A tensor out of the ranks' shares of it.

    Raises:
        NotWhole: see `joined`.
    """
    placed = {rank: Placed(torch.from_numpy(local), placement) for rank, (local, placement) in shares.items()}
    first = next(iter(placed.values()))
    result = torch.zeros(first.placement.shape, dtype=first.local.dtype)
    given = torch.zeros(first.placement.shape, dtype=torch.bool)
    holders: dict[Rectangle, tuple[Ranks, list[int]]] = {}
    for rank, part in placed.items():
        if part.placement.shape != first.placement.shape:
            raise NotWhole(f"is {list(part.placement.shape)} on rank {rank}, {list(first.placement.shape)} on others")
        for piece, values in part.pieces():
            there, before = piece.where.of(result), piece.where.of(given)
            if not torch.equal(_bits(there[before]), _bits(values[before])):
                raise NotWhole(f"{piece.where} has other bits on rank {rank} than on a rank before it")
            there.copy_(values)
            before.fill_(True)
            holders.setdefault(piece.where, (piece.ranks, []))[1].append(rank)
    if missing := int((~given).sum()):
        raise NotWhole(f"{missing} of {given.numel()} elements are on no rank")
    for where, (said, found) in holders.items():
        if list(said) != found:
            raise NotWhole(f"{where} is on ranks {found}, and its record says {list(said)}")
    return result


def _bits(values: Tensor) -> Tensor:
    """Numbers as they are stored: two nan may be equal, 0 and -0 are the same number all the same."""
    return (values + 0.0).view(torch.int64 if values.dtype == torch.float64 else torch.int32)
