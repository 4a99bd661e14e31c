"""What one rank trains on in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evo_core.data.loader.packing import IGNORE, Pack


@dataclass
class Batch:
    """Micro-batches of constant length.

    Attributes:
        input_ids: int64 [micro_num, packed_length].
        labels: int64 [micro_num, packed_length], the next token of each token, -100 where there is none to learn.
        positions: int64 [micro_num, packed_length], from 0 in each sequence.
        type_ids: int64 [micro_num, packed_length], data type of each token, one in all of a micro-batch.
        cu_seqlens: for each micro-batch, where its sequences start, and packed_length: int32 [sequences + 1].
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    type_ids: torch.Tensor
    cu_seqlens: list[torch.Tensor]

    @classmethod
    def without_targets(cls, micro_num: int, packed_length: int, seq_len: int) -> Batch:
        """A batch of padding of that shape, in sequences of seq_len."""
        shape = (micro_num, packed_length)
        cuts = torch.arange(0, packed_length + 1, seq_len, dtype=torch.int32)
        return cls(
            input_ids=torch.zeros(shape, dtype=torch.int64),
            labels=torch.full(shape, IGNORE),
            positions=(torch.arange(packed_length) % seq_len).repeat(micro_num, 1),
            type_ids=torch.zeros(shape, dtype=torch.int64),
            cu_seqlens=[cuts] * micro_num,
        )

    @property
    def micro_num(self) -> int:
        """Number of micro-batches."""
        return self.input_ids.shape[0]

    def has_targets(self) -> bool:
        """Whether there is a token to learn."""
        return bool((self.labels != IGNORE).any())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on a device."""
        return Batch(
            self.input_ids.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.positions.to(device, non_blocking=non_blocking),
            self.type_ids.to(device, non_blocking=non_blocking),
            [tensor.to(device, non_blocking=non_blocking) for tensor in self.cu_seqlens],
        )


def stack(packs: Sequence[Pack], types: Sequence[int]) -> Batch:
    """A batch of packs, each of one data type."""

    def together(rows: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(rows))

    return Batch(
        input_ids=together([pack.input_ids for pack in packs]),
        labels=together([pack.labels for pack in packs]),
        positions=together([pack.positions for pack in packs]),
        type_ids=together([np.full(len(pack.input_ids), type_id) for pack, type_id in zip(packs, types, strict=True)]),
        cu_seqlens=[torch.from_numpy(pack.cu_seqlens) for pack in packs],
    )
