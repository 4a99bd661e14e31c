"""Beam search: the continuations whose tokens are most likely together.

Each step takes, over all beams of a prompt, the best candidates for a longer beam: twice as many as beams, so that
enough go on when some end (with several ending ids, one and as many more times). A candidate among the first
``num_beams`` that ends its text is kept with the score ``sum of log-probabilities / length ** length_penalty``; length
counts its new tokens, the ending one included. The search goes on until no beam can still come to a better score than
the best that ended, or the length limit ends all.

With ``do_sample`` the candidates are drawn without replacement instead, after temperature, top_k and top_p, with
probability by their accumulated score (a Gumbel number is added to each, and the best are taken).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from evo_core.generate.batch import Row, not_finite
from evo_core.generate.forward import Forward
from evo_core.generate.kv_cache import KVCache
from evo_core.generate.sampling import RowSettings, Sampling, distribution, penalise

_LARGEST_EXPONENT = 600
"""exp of it is a float, and so is what is left when a total is divided by that."""

Candidates = list[tuple[int, float]]
"""Of a prompt, the best first: ``beam * drawable + token``, and the sum of log-probabilities with that token."""


@dataclass
class Beam:
    """A continuation in the making: its tokens and the sum of their log-probabilities in nats."""

    tokens: list[int]
    total: float


@dataclass
class _Prompt:
    """A prompt in the search: its beams, and the best that has ended."""

    row: Row
    beams: list[Beam]
    best: Beam | None = None
    best_score: float = -math.inf

    def offer(self, beam: Beam, power: float) -> None:
        """Keep an ended beam if it is the best so far."""
        score = beam.total / _weight(len(beam.tokens), power)
        if score > self.best_score:
            self.best, self.best_score = beam, score

    def settled(self, power: float) -> bool:
        """Whether no beam can come to a better score any more: totals only fall, and each token counts."""
        if not self.beams:
            return True
        longest = self.row.limit - len(self.row.prompt)
        length = longest if power > 0 else len(self.beams[0].tokens) + 1
        return max(beam.total for beam in self.beams) / _weight(length, power) <= self.best_score


class BeamSearch:
    """Continues prompts by beam search.

    Args:
        forward: the model.
        ending: ids that end a text.
        drawable: ids below this may be chosen.
        num_beams: beams of each prompt.
        dynamic_ntk: read rows longer than the trained length with a stretched rotary base.
    """

    def __init__(
        self, forward: Forward, ending: Collection[int], drawable: int, num_beams: int, *, dynamic_ntk: bool = False
    ) -> None:
        self.forward, self.drawable, self.num_beams, self.dynamic_ntk = forward, drawable, num_beams, dynamic_ntk
        self.ending = frozenset(token for token in ending if token < drawable)
        self.candidates = max(2, 1 + len(self.ending)) * num_beams

    @torch.inference_mode()
    def run(self, rows: Sequence[Row], on_step: Callable[[int, int], None] = lambda ended, tokens: None) -> None:
        """Fill in the continuation of every row.

        Args:
            rows: none of them done.
            on_step: called after every step with (prompts that ended in it, tokens that these were given).
        """
        cache = KVCache(self.forward.model, dynamic_ntk=self.dynamic_ntk)
        more = [row.limit - len(row.prompt) for row in rows]
        logits = self.forward.prompts([row.prompt for row in rows], more, cache)
        searches = [_Prompt(row, [Beam([], 0.0)]) for row in rows]
        while True:
            parents: list[int] = []
            first, ended = 0, 0
            given = 0
            going: list[_Prompt] = []
            for search, candidates in zip(searches, self._agreed(searches, logits), strict=True):
                own = range(first, first + len(search.beams))
                first = own.stop
                survivors = self._lengthen(search, candidates)
                if search.row.failed is not None:
                    ended += 1
                elif search.settled(search.row.sampling.length_penalty):
                    assert search.best is not None
                    search.row.new = search.best.tokens
                    search.row.finished = search.row.new[-1] in self.ending
                    ended, given = ended + 1, given + len(search.row.new)
                else:
                    going.append(search)
                    parents += [own[parent] for parent in survivors]
            on_step(ended, given)
            if not going:
                return
            if parents != list(range(len(cache))):
                cache.select(parents)
            searches = going
            last = [beam.tokens[-1] for search in searches for beam in search.beams]
            logits = self.forward.step(torch.tensor(last, device=self.forward.device), cache)

    def _lengthen(self, search: _Prompt, candidates: Candidates | None) -> list[int]:
        """Give every beam of a prompt one more token; the position of each new beam's parent among the old ones."""
        row, beams, power = search.row, search.beams, search.row.sampling.length_penalty
        if candidates is None:
            row.failed = not_finite(len(row.prompt) + len(beams[0].tokens))
            return []
        parents: list[int] = []
        longer: list[Beam] = []
        last = len(row.prompt) + len(beams[0].tokens) + 1 >= row.limit
        for rank, (index, total) in enumerate(candidates):
            if total == -math.inf or len(longer) == self.num_beams:
                break
            parent, token = divmod(index, self.drawable)
            beam = Beam([*beams[parent].tokens, token], total)
            if token in self.ending or last:
                if rank < self.num_beams:
                    search.offer(beam, power)
            else:
                longer.append(beam)
                parents.append(parent)
        search.beams = longer
        return parents

    def _agreed(self, searches: Sequence[_Prompt], logits: Tensor) -> list[Candidates | None]:
        """The best candidates for longer beams of each prompt, on every rank that holds the model; None where the
        scores are no numbers.

        Args:
            logits: [beams of all prompts, vocab_size].
        """
        counts = [min(self.candidates, len(search.beams) * self.drawable) for search in searches]

        def choose() -> Tensor:
            of_each = logits[:, : self.drawable].split([len(search.beams) for search in searches])
            pairs = zip(searches, of_each, strict=True)
            return torch.cat([self._candidates(search.row, search.beams, own) for search, own in pairs])

        told = iter(self.forward.relay.agreed(choose, sum(1 + 2 * count for count in counts), torch.float64).tolist())
        found: list[Candidates | None] = []
        for count in counts:
            is_finite, *numbers = islice(told, 1 + 2 * count)
            pairs = zip(map(int, numbers[:count]), numbers[count:], strict=True)
            found.append(list(pairs) if is_finite else None)
        return found

    def _candidates(self, row: Row, beams: list[Beam], logits: Tensor) -> Tensor:
        """The best candidates for longer beams of a prompt, the best first, as one message.

        Args:
            logits: [beams, drawable].

        Returns:
            [1 + 2 * candidates] float64, which holds positions exactly: whether the scores are numbers, then
            ``beam * drawable + token`` of each, then the totals with them.
        """
        scores = self._scores(row, beams, logits)
        totals = (
            scores + torch.tensor([beam.total for beam in beams], dtype=scores.dtype, device=scores.device)[:, None]
        )
        ranked = totals.flatten()
        if row.draws is not None:
            noise = torch.rand(ranked.shape, generator=row.draws, dtype=torch.float64).to(ranked.device)
            ranked = ranked - noise.log_().neg_().log_()
        chosen = ranked.topk(min(self.candidates, len(ranked))).indices
        values = totals.flatten()[chosen]
        if row.draws is not None:
            values, order = values.sort(descending=True, stable=True)
            chosen = chosen[order]
        finite = logits.amax(-1).isfinite().all()[None]
        return torch.cat([finite.double(), chosen.double(), values.double()])

    def _scores(self, row: Row, beams: list[Beam], logits: Tensor) -> Tensor:
        """Log-probabilities [beams, drawable] from logits; with sampling -inf for what its settings cut off."""
        sampling = row.sampling
        settings = RowSettings([_without_length_penalty(sampling)] * len(beams), self.drawable, logits.device)
        seen = None
        if sampling.repetition_penalty != 1:
            seen = torch.zeros(len(beams), self.drawable, dtype=torch.bool, device=logits.device)
            for number, beam in enumerate(beams):
                known = [token for token in (*row.prompt, *beam.tokens) if token < self.drawable]
                seen[number, torch.tensor(known, dtype=torch.int64)] = True
        none = torch.empty(0, dtype=torch.int64, device=logits.device)
        scores = penalise(logits, seen, None, none, settings)
        if row.draws is None:
            return scores.log_softmax(-1)
        probability, ids = distribution(scores, settings)
        return torch.full_like(scores, -math.inf).scatter_(1, ids, probability.log())


def _weight(length: int, power: float) -> float:
    """``length ** power``, held between the numbers that a total can be divided by."""
    exponent = power * math.log(length)
    return length**power if abs(exponent) < _LARGEST_EXPONENT else math.exp(math.copysign(_LARGEST_EXPONENT, power))


def _without_length_penalty(sampling: Sampling) -> Sampling:
    """In beam search the length counts when a text has ended, not at every token."""
    return Sampling(
        sampling.do_sample, sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty
    )
