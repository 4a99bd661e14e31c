"""What a step of one token a row asks of a cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from evo_core.model import Decoder
from evo_core.model.ops.documents import Documents
from evo_core.model.ops.rope import rotate


class StepCache(ABC):
    """Keys and values of the tokens so far, of rows of which each gets its newest token in a step.

    Class attributes:
        shapes_change: whether what a step reads is longer than what the last one read.

    Args:
        model: whose layers, heads, dtype and device it fits.
        dynamic_ntk: whether keys are kept as they were before rotation, and turned when they are read.

    Attributes:
        layers: by number in the whole model keys and values [2, rows, kv_heads, capacity, head_dim], with the kv_heads
            that its block returns.
        rotation: of the tokens of this pass, [T, head_dim].
        visible: what is added to scores, [rows, 1, 1, slots that are read]; None where all is seen.
    """

    shapes_change = False

    def __init__(self, model: Decoder, *, dynamic_ntk: bool = False) -> None:
        self.model, self.dynamic_ntk = model, dynamic_ntk
        self.device = model.device
        blocks: dict[str, Any] = dict(model.blocks.items())
        self._kv_heads = {int(name): block.attention.kv_heads for name, block in blocks.items()}
        self.layers = {layer: self._empty(layer, 0, 0) for layer in self._kv_heads}
        self.rotation = model.rotation(torch.zeros(0, dtype=torch.int64, device=self.device))
        self.visible: Tensor | None = None

    @abstractmethod
    def step(self) -> Tensor:
        """The next pass holds one token per row. Returns their positions [rows]."""

    @abstractmethod
    def remember(self, layer: int, fresh: Tensor) -> None:
        """Keep the newest token of each row: `fresh` [2, rows, kv_heads, d] holds their keys and values."""

    @abstractmethod
    def read(self, layer: int, q: Tensor) -> Tensor:
        """Attend from the newest tokens' q, rotated [rows, kv_heads, heads / kv_heads, d], over all that is kept."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        """Remember k and v [T, kv_heads, d], and attend from q [T, heads, d] over the row's tokens so far.

        q and k come rotated, or with ``dynamic_ntk`` as they are.
        """
        self.remember(layer, torch.stack([k, v]))
        # The query heads that share a key are laid out as if they were queries behind one another.
        grouped = q.unflatten(1, (k.shape[1], -1))
        return self.read(layer, rotate(grouped, self.rotation) if self.dynamic_ntk else grouped).flatten(1, 2)

    def _empty(self, layer: int, rows: int, capacity: int) -> Tensor:
        # Zeros, since places that are masked are still multiplied by 0, and memory may hold NaN.
        shape = (2, rows, self._kv_heads[layer], capacity, self.model.cfg.head_dim)
        return torch.zeros(shape, device=self.device, dtype=self.model.dtype)
