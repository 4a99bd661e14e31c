"""Sums over tokens that losses and accuracies are computed from, by data type or by block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sums_by_group(nll: Tensor, hit: Tensor, labels: Tensor, groups: Tensor, count: int) -> Tensor:
    """Negative log-likelihood, hits and targets of each group of tokens: [3, count] float64.

    A product with a one-hot matrix, which unlike scattering gives the same bits every time on every device.

    Args:
        nll, hit, labels: [T]; a label of -100 is no target.
        groups: int64 [T], the group of each token, from 0 to count - 1.
    """
    rows = torch.stack([nll.detach().double(), hit.double(), (labels != -100).double()])
    return rows @ F.one_hot(groups, count).double()
