"""Batches of sequences, continued token by token with a key/value cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from evo_core.generate.kv_cache import KVCache
from evo_core.generate.sampling import Sampling, choose, penalise
from evo_core.model import Decoder
from evo_core.model.ops.attention import Documents


class Batches:
    """Runs batch after batch with the same settings, counting what was done.

    Args:
        model: a decoder with its weights.
        sampling: how tokens are chosen.
        ending: ids that end a sequence.
        drawable: ids below this may be chosen.
        progress: called after every token with (sequences done, tokens chosen).
    """

    def __init__(
        self,
        model: Decoder,
        sampling: Sampling,
        ending: frozenset[int],
        drawable: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.sampling, self.ending, self.drawable = model, sampling, ending, drawable
        self.progress = progress or (lambda prompts, tokens: None)
        self.prompts_done = self.tokens_done = 0
        self.device = model.embedding.weight.device
        self._ending_ids = torch.tensor(
            sorted(i for i in ending if i < drawable), dtype=torch.int64, device=self.device
        )

    @torch.inference_mode()
    def run(
        self, sequences: list[list[int]], limits: list[int], draws: list[torch.Generator] | None
    ) -> list[list[int]]:
        """The continuations of a batch.

        Args:
            sequences: token ids of each prompt.
            limits: tokens of each prompt with its continuation.
            draws: random numbers of each prompt; None takes the most likely token.

        Returns:
            The new ids of each, the one that ended it included.
        """
        result: list[list[int]] = [[] for _ in sequences]
        live = [row for row, ids in enumerate(sequences) if len(ids) < limits[row]]
        self.prompts_done += len(sequences) - len(live)
        if not live:
            self.progress(self.prompts_done, self.tokens_done)
            return result
        cache = KVCache(self.model, len(live), max(limits[row] for row in live))
        logits = self._read([sequences[row] for row in live], cache)
        seen = self._seen([sequences[row] for row in live])
        while True:
            lengths = torch.tensor(cache.lengths, device=self.device)
            scores = penalise(logits[:, : self.drawable], seen, lengths, self._ending_ids, self.sampling)
            chosen = choose(scores, self.sampling, self._uniform(draws, live))
            if seen is not None:
                seen.scatter_(1, chosen[:, None], True)
            for row, token in zip(live, chosen.tolist(), strict=True):
                result[row].append(token)
            places = [
                place
                for place, row in enumerate(live)
                if result[row][-1] not in self.ending and len(sequences[row]) + len(result[row]) < limits[row]
            ]
            self.prompts_done += len(live) - len(places)
            self.tokens_done += len(live)
            self.progress(self.prompts_done, self.tokens_done)
            if not places:
                return result
            if len(places) < len(live):
                cache.keep(places)
                chosen, seen = chosen[places], None if seen is None else seen[places]
                live = [live[place] for place in places]
            logits = self._step(chosen, cache)

    def _read(self, sequences: list[list[int]], cache: KVCache) -> Tensor:
        """Read whole prompts, packed; the logits after each prompt's last token [B, V]."""
        positions = cache.prefill([len(ids) for ids in sequences])
        ids = torch.tensor([token for ids in sequences for token in ids], device=self.device)
        ends = torch.tensor([0, *cache.lengths]).cumsum(0)
        cu_seqlens = ends.to(self.device, torch.int32)
        hidden = self.model.hidden(ids, positions, Documents(cu_seqlens, max(cache.lengths)), cache)
        return self.model.head.logits(hidden[(ends[1:] - 1).to(self.device)])

    def _step(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Read one more token of every row; the logits after it [B, V]."""
        positions = cache.step()
        cu_seqlens = torch.arange(len(tokens) + 1, device=self.device, dtype=torch.int32)
        return self.model.head.logits(self.model.hidden(tokens, positions, Documents(cu_seqlens, 1), cache))

    def _seen(self, sequences: list[list[int]]) -> Tensor | None:
        if self.sampling.repetition_penalty == 1:
            return None
        seen = torch.zeros(len(sequences), self.drawable, dtype=torch.bool, device=self.device)
        for row, ids in enumerate(sequences):
            seen[row, torch.tensor([i for i in ids if i < self.drawable], dtype=torch.int64)] = True
        return seen

    def _uniform(self, draws: list[torch.Generator] | None, live: list[int]) -> Tensor | None:
        if draws is None:
            return None
        numbers = [torch.rand((), generator=draws[row], dtype=torch.float64) for row in live]
        return torch.stack(numbers).to(self.device)
