"""Keys and values of the tokens so far, in memory that is set aside once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_core.model import Decoder
from evo_core.model.ops.attention import Documents, packed_attention


class KVCache:
    """What each layer remembers of each sequence of a batch, without padding between sequences of other lengths.

    A forward pass either holds all prompts, packed behind one another (`prefill`), or the newest token of every
    sequence (`step`); the caller announces which, and each layer then hands in its keys and values through
    `attend`.

    Args:
        model: whose layers, heads, dtype and device it fits.
        rows: sequences.
        max_length: tokens of the longest sequence, prompt included.

    Attributes:
        lengths: tokens remembered of each row.
    """

    def __init__(self, model: Decoder, rows: int, max_length: int) -> None:
        cfg = model.cfg
        shape = (cfg.num_layers, rows, cfg.num_kv_attention_heads, max_length, cfg.head_dim)
        self.device = model.embedding.weight.device
        # Zeros, since places that are masked are still multiplied by 0, and memory may hold NaN.
        self._keys = torch.zeros(shape, device=self.device, dtype=model.dtype)
        self._values = torch.zeros_like(self._keys)
        self.lengths: list[int] = [0] * rows
        self._rows = self._positions = torch.empty(0, dtype=torch.int64, device=self.device)
        self._visible: Tensor | None = None
        self._whole_prompts = True

    def prefill(self, lengths: list[int]) -> Tensor:
        """The next pass holds a whole prompt per row, of these lengths. Returns its positions [sum(lengths)]."""
        rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self._rows = rows.to(self.device)
        self._positions = torch.cat([torch.arange(n) for n in lengths]).to(self.device)
        self.lengths, self._whole_prompts = list(lengths), True
        return self._positions

    def step(self) -> Tensor:
        """The next pass holds one token per row. Returns their positions [rows]."""
        self._rows = torch.arange(len(self.lengths), device=self.device)
        self._positions = torch.tensor(self.lengths, device=self.device)
        self.lengths, self._whole_prompts = [n + 1 for n in self.lengths], False
        places = torch.arange(max(self.lengths), device=self.device)
        self._visible = (places <= self._positions[:, None])[:, None, None]
        return self._positions

    def keep(self, rows: list[int]) -> None:
        """Forget all other rows, and number these anew in the order given."""
        index = torch.tensor(rows, device=self.device)
        self._keys, self._values = self._keys[:, index], self._values[:, index]
        self.lengths = [self.lengths[row] for row in rows]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        """Remember k and v [T, kv_heads, d], and attend from q [T, heads, d] over the row's tokens so far."""
        keys, values = self._keys[layer], self._values[layer]
        keys[self._rows, :, self._positions] = k
        values[self._rows, :, self._positions] = v
        if self._whole_prompts:
            return packed_attention(q, k, v, documents)
        longest = max(self.lengths)
        # The query heads that share a key are laid out as if they were queries behind one another.
        grouped = q.unflatten(1, (k.shape[1], -1))
        out = F.scaled_dot_product_attention(
            grouped, keys[:, :, :longest], values[:, :, :longest], attn_mask=self._visible
        )
        return out.flatten(1, 2)
