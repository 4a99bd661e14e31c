"""The global norm of gradients that lie in shares on many ranks, some of them on several."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from evo_core.placement import Piece

Counted = tuple[Tensor, float]
"""Gradients of any shape, and the factor of their squares in the square of the global norm."""

_NORM_ROW = 4096


def sum_of_squares(flat: Tensor) -> Tensor:
    """Sum of squares of a vector [n], as a float64 scalar.

    Rows of 4096 are summed in the vector's own type and then together in float64: on a CPU ten times faster than
    float64 throughout, and 10^-8 off it, where one long fp32 sum is 10^-4 off.
    """
    whole = flat.numel() // _NORM_ROW * _NORM_ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _NORM_ROW), dim=1).double()
    return rows.square().sum() + torch.linalg.vector_norm(flat[whole:]).double().square()


def counted(grad: Tensor, pieces: Iterable[tuple[Piece, Tensor]], divisor: int) -> list[Counted]:
    """What a group's gradients on this rank count in the square of the global norm: each piece once over all ranks.

    Args:
        grad: [n] sums of gradients, zero where no piece lies.
        pieces: all that lie there, each with its view of `grad`.
        divisor: what the sums are to be divided by.
    """
    pieces = list(pieces)
    holders = {len(piece.ranks) for piece, _ in pieces}
    if len(holders) <= 1:  # as almost everywhere: no view of its own for each parameter
        return [(grad, 1 / max(holders, default=1) / divisor**2)]
    return [(view, 1 / len(piece.ranks) / divisor**2) for piece, view in pieces]


def own_square(parts: Iterable[Counted]) -> Tensor:
    """What this rank adds to the square of the global norm, as a float64 scalar."""
    return torch.stack([sum_of_squares(grad.reshape(-1)) * weight for grad, weight in parts]).sum()
