"""Steps of a batch whose tensors stay where they are, so that a CUDA graph may repeat them.

A step of few rows on a GPU is bound by starting its kernels, one by one. A CUDA graph starts all of them at once
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs), and repeats them on the same memory: nothing in a
step may depend on a number that Python knows. Here the place of the newest token, the positions and what is visible are
tensors that the step itself moves on, and attention reads all slots, those that are not filled hidden by a mask.

Rows begin together, and each is read until the last one ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_core.generate.forward import Forward
from evo_core.generate.kv_cache import KVCache
from evo_core.generate.step_cache import StepCache
from evo_core.model import Decoder
from evo_core.model.evaluating import evaluating
from evo_core.model.ops.moe import MixtureMLP

WARM_UP = 3
"""Steps before a graph is recorded, in which libraries choose their kernels and take their memory."""

_SLOTS = 64
"""Slots come in such numbers, for the kernels of attention that want aligned masks."""


class FixedCache(StepCache):
    """Keys and values in slots whose number and addresses stay: of rows of which each gets one token a step.

    Args:
        rows: of the batch.
        slots: tokens of a row at most; rounded up.

    Attributes:
        slots: as rounded.
        most: tokens of a row at most: all slots, unless texts that long would turn keys otherwise.
        taken: tokens that the longest row has in slots, as the steps that this process has called for say.

    Raises:
        ValueError: the rotation of keys would depend on how long texts are (``use_dynamic_ntk_rope``).
    """

    def __init__(self, model: Decoder, rows: int, slots: int) -> None:
        super().__init__(model)
        cfg = model.cfg
        if cfg.use_dynamic_ntk_rope and slots > cfg.max_position_embeddings:
            raise ValueError(
                f"{slots} tokens are more than model.max_position_embeddings, {cfg.max_position_embeddings}: beyond it "
                "use_dynamic_ntk_rope turns keys by how long a text is, and fixed tensors keep them as they were"
            )
        self.slots, self.taken = -(-slots // _SLOTS) * _SLOTS, 0
        self.most = min(self.slots, cfg.max_position_embeddings) if cfg.use_dynamic_ntk_rope else self.slots
        self.layers = {layer: self._empty(layer, rows, self.slots) for layer in self.layers}
        self.visible = torch.full((rows, 1, 1, self.slots), float("-inf"), device=self.device, dtype=model.dtype)
        self._every = model.rotation(torch.arange(self.slots, device=self.device))
        self._newest = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=self.device)

    def take(self, cache: KVCache) -> None:
        """Remember what a cache remembers, in place of all before.

        Raises:
            ValueError: it has another number of rows, or more tokens than there are slots.
        """
        kept = max(cache.lengths, default=0)
        if len(cache) != len(self._positions) or kept > self.most:
            there = f"{len(self._positions)} rows of {self.most} slots"
            raise ValueError(f"{len(cache)} rows of at most {kept} tokens do not fit into {there}")
        for layer, mine in self.layers.items():
            mine[:, :, :, :kept] = cache.layers[layer][:, :, :, cache.end - kept : cache.end]
            mine[:, :, :, kept:] = 0  # what is hidden is still multiplied by 0, and an earlier text may have left NaN
        lengths = torch.tensor(cache.lengths, device=self.device)
        slots = torch.arange(self.slots, device=self.device)
        seen = (slots >= kept - lengths[:, None]) & (slots < kept)
        assert self.visible is not None
        self.visible.copy_(torch.where(seen, 0.0, float("-inf"))[:, None, None])
        self._newest.fill_(kept - 1)
        self._positions.copy_(lengths - 1)
        self.taken = kept

    def step(self) -> Tensor:
        """The next pass holds one token per row: make its slot the newest. Returns their positions [rows]."""
        self._newest.add_(1)
        self._positions.add_(1)
        assert self.visible is not None
        self.visible.index_fill_(3, self._newest, 0.0)
        cos, sin, _ = self._every
        self.rotation = self._every._replace(
            cos=cos.index_select(0, self._positions), sin=sin.index_select(0, self._positions)
        )
        return self._positions

    def remember(self, layer: int, fresh: Tensor) -> None:
        """Keep the newest token of each row: `fresh` [2, rows, kv_heads, d] holds their keys and values."""
        self.layers[layer].index_copy_(3, self._newest, fresh.unsqueeze(3))

    def read(self, layer: int, q: Tensor) -> Tensor:
        """Attend from the newest tokens' q, rotated [rows, kv_heads, heads / kv_heads, d], over all that is kept."""
        keys, values = self.layers[layer].unbind()
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self.visible)


class FixedDecoding:
    """Continues batches of so many rows, on CUDA by a graph of one step; with experts, step by step.

    Args:
        forward: the model, whole on this process.
        rows: of every batch.
        slots: tokens of a prompt and what follows it at most.

    Raises:
        ValueError: a model whose layers lie on several ranks.
    """

    def __init__(self, forward: Forward, rows: int, slots: int) -> None:
        if not forward.relay.has_logits or not forward.relay.takes_ids:
            raise ValueError("steps of fixed tensors need a model whose layers are all on this process")
        self.forward, self.cache = forward, FixedCache(forward.model, rows, slots)
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=forward.device)
        self._step: Callable[[], Tensor] = self._plain
        # Experts are given their tokens by counts, which the GPU is asked for.
        experts = any(isinstance(module, MixtureMLP) for module in forward.model.modules())
        self._recorded = forward.device.type != "cuda" or experts

    @torch.inference_mode()
    def begin(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read whole prompts. Returns the logits after each [rows, vocab_size].

        Raises:
            ValueError: another number of prompts than rows, one without a token, or one that is longer than there are
                slots.
        """
        read = KVCache(self.forward.model)
        with evaluating(self.forward.model):
            logits = self.forward.prompts([list(prompt) for prompt in prompts], [1] * len(prompts), read)
            self.cache.take(read)
            if not self._recorded:
                self._record()
                self.cache.take(read)  # recording has moved it on
        return logits

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token of every row.

        Args:
            tokens: [rows] int64.

        Returns:
            The logits after it [rows, vocab_size]; the next step writes over them.

        Raises:
            ValueError: all slots are taken.
        """
        if self.cache.taken >= self.cache.most:
            raise ValueError(f"all {self.cache.most} slots are taken")
        self.cache.taken += 1
        self.tokens.copy_(tokens)
        if not self.forward.model.training:
            return self._step()
        with evaluating(self.forward.model):
            return self._step()

    def greedy(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        """The most likely tokens behind each prompt, so many of each; nothing waits for the GPU before the last."""
        if new < 1:
            return [[] for _ in prompts]
        chosen = [self.begin(prompts).argmax(-1)]
        while len(chosen) < new:
            chosen.append(self.step(chosen[-1]).argmax(-1))
        return torch.stack(chosen, 1).tolist()

    def _plain(self) -> Tensor:
        return self.forward.step(self.tokens, self.cache)

    def _record(self) -> None:
        """Record one step; torch asks for the warm-up, on a stream of its own."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(min(WARM_UP, self.cache.slots - self.cache.taken)):
                self._plain()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._plain()

        def repeat() -> Tensor:
            graph.replay()
            return logits

        self._step, self._recorded = repeat, True
