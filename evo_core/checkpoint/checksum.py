"""Numbers that tell whether two ranks have the same bits in a tensor, made where the tensor lies.

Bits are compared, not values: 0 and -0 differ, and a NaN equals itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import xxhash
from torch import Tensor

_CHUNK = 1 << 22
_FACTOR = 0x5851F42D4C957F2D
"""An odd number with no pattern in its bits, by whose powers chunks are weighed: exchanging two of them shows."""

_INTEGERS = {1: torch.int8, 2: torch.int16}


def checksums(tensors: Sequence[Tensor]) -> Callable[[], list[int]]:
    """One number of 64 bits for each tensor, of any shape, as it is now.

    Returns:
        A function that says them, and may be called later. What is on a GPU is read there, in the order of its work,
        and nothing waits for it before that call.
    """
    host = {n: hashed(tensor) for n, tensor in enumerate(tensors) if tensor.device.type == "cpu"}
    count = len(tensors)
    device = [n for n in range(count) if n not in host]
    read = torch.stack([weighed(tensors[n]) for n in device]) if device else torch.empty(0, dtype=torch.int64)

    def numbers() -> list[int]:
        known = host | dict(zip(device, read.tolist(), strict=True))
        return [known[n] for n in range(count)]

    return numbers


def combined(numbers: Iterable[int]) -> int:
    """The checksum of what consists of parts, from theirs in their order."""
    return xxhash.xxh3_64_intdigest(b"".join((number % 2**64).to_bytes(8, "little") for number in numbers))


def hashed(tensor: Tensor) -> int:
    """XXH3 of the bytes of a tensor of any shape, row by row: on a CPU several times faster than
    what torch could compute."""
    return xxhash.xxh3_64_intdigest(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)


def weighed(tensor: Tensor) -> Tensor:
    """The sum of the bits of a tensor of any shape, a scalar int64: as integers times odd weights that
    grow with their place.

    One element of up to 32 bits that differs always shows, and so do two that are exchanged less than four million
    places apart; anything else goes unseen once in 2^64.

    Returns:
        A scalar, int64, on the tensor's device; nothing waits for it.
    """
    flat = tensor.detach().reshape(-1)
    integers = flat.view(_INTEGERS.get(flat.element_size(), torch.int32))  # of 64 bits none is lost: two of 32 each
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    weights = torch.arange(1, 2 * min(_CHUNK, integers.numel()) + 1, 2, device=flat.device)
    for chunk in integers.split(_CHUNK):
        total = total * _FACTOR + (chunk * weights[: chunk.numel()]).sum()
    return total
