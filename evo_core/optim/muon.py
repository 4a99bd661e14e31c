"""Muon: a matrix is updated by its gradients' running mean, made nearly orthogonal.

Keller Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon): momentum, in Nesterov's form or not, then steps
of a Newton-Schulz iteration, which brings singular values near 1. Liu et al. 2025 (arXiv:2502.16982, "Muon is Scalable
for LLM Training"): weight decay as AdamW's, and a scale by which an update has the root mean square of one of AdamW's,
so that AdamW's learning rate and decay can be kept. It is `torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"``,
but for the type of the products.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic, Keller Jordan's: so steep in 0 that five steps bring what is above 0.002 to between 0.68 and 1.21."""

SMALLEST_NORM = 1e-7
"""By this at least a matrix is divided to begin with: one of zeros stays so."""

RMS_OF_ADAMW = 0.2
"""The usual root mean square of AdamW's updates at a rate of 1 (arXiv:2502.16982, section 2.2)."""


@dataclass(frozen=True)
class Muon:
    """How matrices are updated.

    Attributes:
        momentum: share of the running mean that the next one keeps, from 0 to below 1.
        nesterov: whether the gradient is mixed into the mean once more.
        ns_steps: steps of the Newton-Schulz iteration.
        lr_ratio: rate of the matrices over that of the rest.
        products: type of the iteration's products, but for float16, which holds neither small nor large gradients;
            None: see `product_dtype`.
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    lr_ratio: float = 1.0
    products: torch.dtype | None = None

    def product_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """The type of the iteration's products for master values of a type: bfloat16 on a GPU, and never narrower than
        these on a CPU or for float64."""
        narrows = device.type == "cuda" and dtype != torch.float64
        return self.products or (torch.bfloat16 if narrows else dtype)


@dataclass(frozen=True)
class Matrices:
    """The matrices that one weight [rows, columns] is: several, where a projection is fused, and each is updated by
    itself, as if it were not.

    The rows are `runs` times the same: `heights[0]` rows of the first matrix, then `heights[1]` of the second, ...

    Attributes:
        runs: how many; 1 where matrices lie one behind another, and where there is one.
        heights: rows of each matrix in a run.
    """

    runs: int
    heights: tuple[int, ...]

    def of(self, weight: Tensor) -> Iterator[Tensor]:
        """Each matrix, as a view [runs, height, columns]: its rows are those of the runs, one behind another."""
        yield from weight.view(self.runs, sum(self.heights), -1).split(self.heights, dim=1)

    def operations(self, columns: int, ns_steps: int) -> float:
        """Operations of the iteration for all of them."""
        return float(sum(operations(self.runs * height, columns, ns_steps) for height in self.heights))


def operations(rows: int, columns: int, ns_steps: int) -> int:
    """Of the products of an iteration's steps for a matrix, one of m x k and k x n as 2 m k n."""
    short, long = min(rows, columns), max(rows, columns)
    return ns_steps * (4 * short * short * long + 2 * short**3)


def orthogonal(matrix: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Nearly U V^T of a matrix U S V^T: singular values are brought near 1, those that were not too small.

    Args:
        matrix: [m, n], any type.
        steps: of the iteration.
        dtype: of the products.

    Returns:
        [m, n] in `dtype`.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    x = x.T if tall else x  # the smaller of the two squares
    x = x / x.norm().clamp(min=SMALLEST_NORM)
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def update(
    master: Tensor,
    grad: Tensor,
    momentum: Tensor,
    matrices: Matrices,
    muon: Muon,
    *,
    lr: float,
    weight_decay: float,
) -> None:
    """Update a weight and its running mean in place.

    Args:
        master, grad, momentum: [rows, columns], alike in type.
        matrices: what the weight is.
        lr: of the matrices.
        weight_decay: decoupled.
    """
    dtype = muon.product_dtype(master.dtype, master.device)
    momentum.lerp_(grad, 1 - muon.momentum)
    direction = grad.lerp(momentum, muon.momentum) if muon.nesterov else momentum
    master.mul_(1 - lr * weight_decay)
    for there, part in zip(matrices.of(master), matrices.of(direction), strict=True):
        matrix = part.reshape(-1, part.shape[-1])
        scale = RMS_OF_ADAMW * math.sqrt(max(matrix.shape))
        there.add_(orthogonal(matrix, muon.ns_steps, dtype).unflatten(0, part.shape[:2]), alpha=-lr * scale)
