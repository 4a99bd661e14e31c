"""Dynamic NTK: a rotary base that grows with the text, so that a model reads further than it was trained on.

Up to the trained length nothing changes. Beyond it the base is raised so far that the slowest pair of a head turns
over the whole text about as far as it did over the longest text in training, while the fastest keeps its pace.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evo_core.model.ops.documents import Documents


def dynamic_ntk_base(base: float, head_dim: int, length: int, trained: int, scaling: float = 1.0) -> float:
    """The base for a text of so many tokens.

    ``base * (s * L / M - (s - 1)) ^ (d / (d - 2))`` for L > M, else ``base``.

    Args:
        base: the one of training.
        head_dim: d, width of a head.
        length: L, tokens of the text.
        trained: M, the longest text in training (`model.max_position_embeddings`).
        scaling: s; 1 stretches no further than the text needs.
    """
    if length <= trained or head_dim <= 2:
        return base
    return base * (scaling * length / trained - (scaling - 1)) ** (head_dim / (head_dim - 2))


def document_bases(
    base: float, head_dim: int, documents: Documents, trained: int, scaling: float = 1.0
) -> Tensor | float:
    """The base of each token [T] float64 by the length of its own document; one number where none is stretched."""
    lengths = documents.lengths
    if max(lengths, default=0) <= trained:
        return base
    bases = torch.tensor(
        [dynamic_ntk_base(base, head_dim, length, trained, scaling) for length in lengths], dtype=torch.float64
    )
    return bases.repeat_interleave(torch.tensor(lengths)).to(documents.cu_seqlens.device)
