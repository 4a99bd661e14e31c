"""A number that tells whether two ranks have the same bits in a tensor, made where the tensor lies."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_CHUNK = 1 << 20
_FACTOR = 0x5851F42D4C957F2D
"""An odd number with no pattern in its bits, by whose powers chunks are weighed: exchanging two of them shows."""

_INTEGERS = {1: torch.int8, 2: torch.int16}


def checksum(tensor: Tensor) -> Tensor:
    """The sum of a tensor's bits, as integers times odd weights that grow with their place.

    One element that differs always shows, and so do two that are exchanged less than a million places apart; anything
    else goes unseen once in 2^64. Bits are compared, not numbers: 0 and -0 differ, and NaN equals itself.

    Returns:
        A scalar, int64, on the tensor's device; nothing waits for it.
    """
    flat = tensor.detach().reshape(-1)
    integers = flat.view(_INTEGERS.get(flat.element_size(), torch.int32))  # of 64 bits none is lost: two of 32 each
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    weights = _weights(flat.device)
    for chunk in integers.split(_CHUNK):
        total = total * _FACTOR + (chunk * weights[: chunk.numel()]).sum()
    return total


@functools.lru_cache(maxsize=1)
def _weights(device: torch.device) -> Tensor:
    return torch.arange(1, 2 * _CHUNK, 2, device=device)
