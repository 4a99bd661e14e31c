"""Keys and values of the tokens so far, of rows that come and go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_core.generate.step_cache import StepCache
from evo_core.model import Decoder
from evo_core.model.ops.attention import packed_attention
from evo_core.model.ops.documents import Documents
from evo_core.model.ops.dynamic_ntk import dynamic_ntk_base
from evo_core.model.ops.rope import Rotary, rotate

AHEAD = 512
"""Slots that are set aside for tokens to come, at least; a long text makes room for half of itself."""


class KVCache(StepCache):
    """What each layer remembers of each row of a batch; rows may join and leave between steps.

    Rows end at the same slot, whatever their lengths: the newest tokens of all rows lie side by side, so that a step
    writes them in one copy, and a shorter row only hides the slots before its first token.

    A forward pass either holds the whole prompts of new rows, packed behind one another (`extend`), or the newest
    token of every row (`step`); the caller announces which.

    With ``dynamic_ntk`` the keys are kept as they were before rotation, since the rotary base grows with each token
    beyond the trained length, and are turned with the present base of their row when they are read.

    Args:
        model: whose layers, heads, dtype and device it fits.
        dynamic_ntk: whether rows longer than the model was trained on are read with a stretched rotary base.

    Attributes:
        lengths: tokens remembered of each row.
        end: the slot behind the newest tokens.
    """

    shapes_change = True

    def __init__(self, model: Decoder, *, dynamic_ntk: bool = False) -> None:
        super().__init__(model, dynamic_ntk=dynamic_ntk)
        self.lengths: list[int] = []
        self.end = self._capacity = 0
        self._more: list[int] = []
        self._prompts: list[tuple[int, int, int]] = []
        self._hidden_slots: Tensor | None = None
        self._tables = self._key_rotation = self.rotation
        self._window = (0, 0)

    def __len__(self) -> int:
        return len(self.lengths)

    def extend(self, lengths: Sequence[int], more: Sequence[int]) -> Tensor:
        """Make room for new rows; the next pass holds their whole prompts.

        Args:
            lengths: tokens of each prompt.
            more: tokens that may follow each.

        Returns:
            The positions of the prompts' tokens [sum(lengths)].
        """
        old = len(self.lengths)
        self._more = [*self._more, *more]
        self._make_room(old + len(lengths), max([*self.lengths, *lengths]))
        self.lengths = [*self.lengths, *lengths]
        self._prompts, start = [], 0
        for row, length in enumerate(lengths, old):
            self._prompts.append((row, start, length))
            start += length
        self._rows_changed()
        positions = torch.cat([torch.arange(n) for n in lengths]).to(self.device)
        if self.dynamic_ntk:
            bases = torch.tensor([self._base(n) for n in lengths], dtype=torch.float64)
            self.rotation = self.model.rotation(
                positions, bases.repeat_interleave(torch.tensor(lengths)).to(self.device)
            )
        else:
            self.rotation = self._rotation_at(positions)
        return positions

    def step(self) -> Tensor:
        """The next pass holds one token per row. Returns their positions [rows]."""
        self._prompts = []
        if self.end == self._capacity:
            self._make_room(len(self.lengths), max(self.lengths))
            self._rows_changed()
        positions = torch.tensor(self.lengths, device=self.device)
        self.lengths = [n + 1 for n in self.lengths]
        self._more = [n - 1 for n in self._more]
        self.end += 1
        longest = max(self.lengths)
        self._window = (self.end - longest, longest)
        self.visible = None if self._hidden_slots is None else self._hidden_slots.narrow(3, *self._window)
        if self.dynamic_ntk:
            bases = torch.tensor([self._base(n) for n in self.lengths], dtype=torch.float64, device=self.device)
            self.rotation = self.model.rotation(positions, bases)
            slots = torch.arange(1 - longest, 1, device=self.device)
            places = (positions[:, None] + slots).clamp_(min=0)  # hidden slots lie before the row's first token
            self._key_rotation = self.model.rotation(places.flatten(), bases.repeat_interleave(len(slots)))
        else:
            self.rotation = self._rotation_at(positions)
        return positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        """Remember k and v [T, kv_heads, d], and attend from q [T, heads, d] over the row's tokens so far.

        q and k come rotated, or with ``dynamic_ntk`` as they are.
        """
        if not self._prompts:
            return super().attend(layer, q, k, v, documents)
        keys, values = self.layers[layer]
        for row, start, length in self._prompts:
            slots, tokens = slice(self.end - length, self.end), slice(start, start + length)
            keys[row, :, slots], values[row, :, slots] = k[tokens].transpose(0, 1), v[tokens].transpose(0, 1)
        if self.dynamic_ntk:
            q, k = rotate(q, self.rotation), rotate(k, self.rotation)
        return packed_attention(q, k, v, documents, use_flash_attn=self.model.cfg.use_flash_attn)

    def remember(self, layer: int, fresh: Tensor) -> None:
        """Keep the newest token of each row: `fresh` [2, rows, kv_heads, d] holds their keys and values."""
        self.layers[layer].select(3, self.end - 1).copy_(fresh)

    def read(self, layer: int, q: Tensor) -> Tensor:
        """Attend from the newest tokens' q, rotated [rows, kv_heads, heads / kv_heads, d], over all that is kept."""
        keys, values = self.layers[layer].narrow(3, *self._window).unbind()
        if self.dynamic_ntk:
            by_place = keys.transpose(1, 2).flatten(0, 1)
            keys = rotate(by_place, self._key_rotation).unflatten(0, (len(self.lengths), -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self.visible)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows in this order; a row may be taken several times, and all others are forgotten."""
        index, kept = torch.tensor(rows, device=self.device), max(self.lengths)
        slots = slice(self.end - kept, self.end)
        for layer, before in self.layers.items():
            taken = before[:, index, :, slots]
            if len(rows) > before.shape[1]:
                before = self._empty(layer, len(rows), self._capacity)
            self.layers[layer] = before[:, : len(rows)]
            self.layers[layer][:, :, :, slots] = taken
        self._number_anew(rows)

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Forget these rows. Returns the rows that remain, in their new order: the last ones fill the gaps."""
        order = list(range(len(self.lengths)))
        for row in sorted(rows, reverse=True):
            last = order.pop()
            if row < len(order):
                order[row] = last
        if not order:
            self.layers = {layer: self._empty(layer, 0, 0) for layer in self.layers}
        for layer, before in self.layers.items():
            for row, source in enumerate(order):
                if source != row:
                    before[:, row] = before[:, source]
            self.layers[layer] = before[:, : len(order)]
        self._number_anew(order)
        return order

    def _make_room(self, rows: int, end: int) -> None:
        """Move what is remembered into memory for so many rows, with its newest tokens before the slot ``end``."""
        kept = max(self.lengths, default=0)
        self._capacity = end + min(max(self._more), max(AHEAD, end // 2))
        for layer, before in self.layers.items():
            room = self._empty(layer, rows, self._capacity)
            room[:, : before.shape[1], :, end - kept : end] = before[:, :, :, self.end - kept : self.end]
            self.layers[layer] = room
        self.end = end

    def _number_anew(self, rows: Sequence[int]) -> None:
        self.lengths = [self.lengths[row] for row in rows]
        self._more = [self._more[row] for row in rows]
        self._rows_changed()

    def _rows_changed(self) -> None:
        """Say anew which slots lie before a row's first token: 0 to see, -inf to hide, [rows, 1, 1, capacity]."""
        self._hidden_slots = None
        if len(set(self.lengths)) > 1:
            first = self.end - torch.tensor(self.lengths)
            hidden = torch.arange(self._capacity) < first[:, None]
            mask = torch.zeros(hidden.shape, dtype=self.model.dtype).masked_fill_(hidden, float("-inf"))
            self._hidden_slots = mask[:, None, None].to(self.device)

    def _rotation_at(self, positions: Tensor) -> Rotary:
        """From tables that are computed once and grow with the texts."""
        longest = max(self.lengths)
        if longest > self._tables.cos.shape[0]:
            every = torch.arange(max(2 * longest, 256), device=self.device)
            self._tables = self.model.rotation(every)
        cos, sin, interleaved = self._tables
        return Rotary(cos.index_select(0, positions), sin.index_select(0, positions), interleaved)

    def _base(self, length: int) -> float:
        cfg = self.model.cfg
        trained, factor = cfg.max_position_embeddings, cfg.dynamic_ntk_factor
        return dynamic_ntk_base(cfg.rope_base, cfg.head_dim, length, trained, factor)
