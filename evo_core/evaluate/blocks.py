"""Held-out sums in blocks of sequences: standard errors, and differences of two models on the same text.

Tokens of one text are far from independent, so an error computed from single tokens would be too small. Sequences are
put into a fixed number of blocks by their content, which depends on neither packing nor ranks; the spread of the
blocks gives the error of a mean over tokens, and the spread of two models' differences by block gives the error of
their difference, in which the difficulty of the text cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from evo_core.evaluate.sums import sums_by_group

BLOCKS = 64


def block_sums(nll: Tensor, hit: Tensor, labels: Tensor, input_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Negative log-likelihood, hits and targets by block: [3, BLOCKS] float64.

    Args:
        nll, hit, labels, input_ids: [T], of one packed sequence; a label of -100 is no target.
        cu_seqlens: [n + 1] where its sequences begin and end.
    """
    ends = cu_seqlens.long()
    before = F.pad(input_ids.cumsum(0), (1, 0))
    lengths = ends.diff()
    blocks = (before[ends[1:]] - before[ends[:-1]] + lengths) % BLOCKS
    return sums_by_group(nll, hit, labels, blocks.repeat_interleave(lengths), BLOCKS)


def stderr(sums: Sequence[float], counts: Sequence[float]) -> float | None:
    """Standard error of ``sum(sums) / sum(counts)`` with blocks taken as independent; None with fewer than two.

    With r that ratio and B blocks: ``sqrt(B / (B - 1) * sum_b (sums_b - r counts_b)^2) / sum(counts)`` (the usual
    linearisation of a ratio; Cochran, Sampling Techniques, 1977, section 6.4).
    """
    used = [(total, count) for total, count in zip(sums, counts, strict=True) if count > 0]
    if len(used) < 2:
        return None
    whole = sum(count for _, count in used)
    ratio = sum(total for total, _ in used) / whole
    squares = sum((total - ratio * count) ** 2 for total, count in used)
    return math.sqrt(len(used) / (len(used) - 1) * squares) / whole
