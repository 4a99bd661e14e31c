"""From scores to the next token.

Each step, in this order: the repetition penalty on tokens seen before (prompt included), the length penalty on
all tokens but those that end a text, the temperature, the k most likely, the smallest set that holds the
probability p, and a draw from what is left. Without sampling: the penalties, then the most likely.

Settings at the ends of what floating point can say give what they tend to: a temperature near 0 the most likely
token, a top_p near 0 too, a penalty near 0 or near infinity scores at the ends of their type. So scores that are
finite stay finite, whatever the settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evo_core.errors import ConfigError

_TINY = 1e-300
"""What stands for a divisor too near to 0 to divide by."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the names are those of the `generation` block.

    Args:
        do_sample: draw; False takes the most likely token.
        temperature: scores are divided by it; above 0.
        top_k: draw from the k most likely; 0 from all.
        top_p: draw from the fewest tokens whose probabilities reach p together, in (0, 1].
        repetition_penalty: scores of tokens seen before are divided by it where positive, multiplied where
            negative (arXiv:1909.05858); 1 is none.
        length_penalty: scores of all tokens but the ending ones are divided by ``length ** length_penalty``,
            length counting the tokens so far with the prompt; 1 is none. Beam search takes it otherwise (beams.py).

    Raises:
        ConfigError: a value out of range.
    """

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, good, rule in (
            (
                "temperature",
                0 < self.temperature < math.inf,
                "above 0 and finite; do_sample false takes the most likely token",
            ),
            ("top_k", self.top_k >= 0, "0 or more; 0 draws from all tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0 and finite; 1 is none"),
            ("length_penalty", math.isfinite(self.length_penalty), "finite; 1 is none"),
        ):
            if not good:
                raise ConfigError(f"{getattr(self, name):g} must be {rule}", key=f"generation.{name}")


class RowSettings:
    """The settings of a batch's rows as columns [rows, 1]; None where no row asks for anything.

    Attributes:
        top_k: [rows, 1] int64, the vocabulary's size for a row without it.
        widest: the largest of top_k.
        drawn: [rows] bool, the rows that draw; None where all do.
        greedy: whether no row draws.
    """

    def __init__(self, rows: Sequence[Sampling], vocab_size: int, device: torch.device | str) -> None:
        def column(value: Callable[[Sampling], float]) -> Tensor | None:
            values = [value(row) for row in rows]
            if all(number == 1 for number in values):
                return None
            return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

        self.greedy = not any(row.do_sample for row in rows)
        all_draw = all(row.do_sample for row in rows)
        self.drawn = None if all_draw else torch.tensor([row.do_sample for row in rows], device=device)
        counts = [min(row.top_k or vocab_size, vocab_size) for row in rows if row.do_sample or self.greedy]
        self.widest = max(counts, default=1)
        kept = [min(row.top_k or vocab_size, self.widest) for row in rows]
        self.top_k = None if set(kept) <= {self.widest} else torch.tensor(kept, device=device)[:, None]
        self.temperature = column(lambda row: row.temperature)
        # Rounded sums of probabilities reach 1 before the last token: beyond any of them for a row that keeps all.
        self.top_p = column(lambda row: row.top_p if row.top_p < 1 else 1)
        self.top_p = None if self.top_p is None else self.top_p.masked_fill(self.top_p == 1, 2.0)
        self.repetition_penalty = column(lambda row: row.repetition_penalty)
        self.length_penalty = column(lambda row: row.length_penalty)


def penalise(logits: Tensor, seen: Tensor | None, lengths: Tensor | None, ending: Tensor, rows: RowSettings) -> Tensor:
    """Logits with both penalties [B, V], in float32 or wider; a score beyond the ends of that type is held at the end.

    Args:
        logits: [B, V].
        seen: [B, V] bool, the tokens of each row so far; may be None without repetition penalty.
        lengths: [B], tokens of each row so far, prompt included; may be None without length penalty.
        ending: [n] int64, the ids that end a text.
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if rows.repetition_penalty is not None and seen is not None:
        penalty = rows.repetition_penalty
        fallen = torch.where(scores < 0, scores * penalty, scores / penalty)
        scores = torch.where(seen, _within(fallen, scores.dtype), scores)
    if rows.length_penalty is not None and lengths is not None:
        power = rows.length_penalty
        weight = (lengths.double()[:, None] ** power).clamp(_TINY, 1 / _TINY)
        shorter = torch.where(power == 1, scores, _within(scores / weight, scores.dtype))
        scores = shorter.index_copy(1, ending, scores[:, ending])
    return scores


def _within(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 scores in another type, those beyond its ends held there."""
    limit = torch.finfo(dtype).max
    return scores.clamp(-limit, limit).to(dtype)


def distribution(scores: Tensor, rows: RowSettings) -> tuple[Tensor, Tensor]:
    """What is drawn from: probabilities [B, k] in falling order, 0 where cut off, and the ids [B, k] they belong to.

    From `scores` [B, V], with their penalties. k is the largest ``top_k``, or V without it. Probabilities are divided
    by the sum of those that are left.
    """
    best, ids = most_likely_ones(scores, rows.widest)
    if rows.temperature is not None:
        finite = torch.finfo(best.dtype)
        # Below the best, so that a score over a temperature near 0 is -inf or 0 and no two of them are +inf.
        best = (best - best[:, :1]) / rows.temperature.clamp(finite.tiny, finite.max).to(best.dtype)
    if rows.top_k is not None:
        best = best.masked_fill(torch.arange(rows.widest, device=best.device) >= rows.top_k, float("-inf"))
    probability = best.softmax(-1)
    if rows.top_p is not None:
        more_likely = probability.cumsum(-1) - probability
        least = torch.finfo(probability.dtype).tiny
        probability = probability * (more_likely < rows.top_p.clamp(min=least).to(probability.dtype))
        probability = probability / probability.sum(-1, keepdim=True)
    return probability, ids


def most_likely_ones(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest of scores [B, V] in falling order [B, count], of equal ones the first before the others, and their
    positions.

    `topk` keeps any of equal ones and in any order, which hangs on how many are asked for: on the rows beside this one.
    Scores that came of 16 bits are often equal.
    """
    if scores.dtype != torch.float32:
        best, ids = scores.sort(dim=-1, descending=True, stable=True)
        return best[:, :count], ids[:, :count]
    bits = (scores + 0.0).view(torch.int32)  # -0.0 is 0.0
    rising = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)  # numbers in the order of the scores
    last = scores.shape[-1] - 1
    behind = torch.arange(last, -1, -1, device=scores.device)
    every = rising.to(torch.int64).bitwise_left_shift_(32).bitwise_or_(behind)  # no two are equal
    keys = every.topk(count, dim=-1).values
    ids = last - (keys & 0xFFFFFFFF)
    return scores.gather(-1, ids), ids


def most_likely(scores: Tensor) -> Tensor:
    """The position of the largest of scores [B, V] in each row [B], the first where there are several."""
    if scores.device.type == "cpu":  # numpy's search uses vector instructions and is many times faster
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(-1)


def choose(scores: Tensor, rows: RowSettings, uniform: Tensor | None) -> Tensor:
    """The next token of each row [B].

    Args:
        scores: [B, V], with their penalties.
        uniform: [B] float64 random numbers in [0, 1), one per row; None where no row draws.
    """
    if uniform is None or rows.greedy:
        return most_likely(scores)
    probability, ids = distribution(scores, rows)
    cumulative = probability.double().cumsum(-1)
    position = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    last = (probability > 0).sum(-1, keepdim=True).clamp(min=1) - 1  # of scores that are no numbers the first
    chosen = ids.gather(1, torch.minimum(position, last)).squeeze(1)
    return chosen if rows.drawn is None else torch.where(rows.drawn, chosen, ids[:, 0])
