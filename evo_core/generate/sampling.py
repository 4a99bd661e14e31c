"""From scores to the next token.

Each step, in this order: the repetition penalty on tokens seen before (prompt included), the length penalty on
all tokens but those that end a text, the temperature, the k most likely, the smallest set that holds the
probability p, and a draw from what is left. Without sampling: the penalties, then the most likely.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evo_core.errors import ConfigError


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
            length counting the tokens so far with the prompt; 1 is none.

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
            ("temperature", self.temperature > 0, "above 0; do_sample false takes the most likely token"),
            ("top_k", self.top_k >= 0, "0 or more; 0 draws from all tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0; 1 is none"),
        ):
            if not good:
                raise ConfigError(f"{getattr(self, name):g} must be {rule}", key=f"generation.{name}")


def penalise(logits: Tensor, seen: Tensor | None, lengths: Tensor, ending: Tensor, sampling: Sampling) -> Tensor:
    """Logits with both penalties, in float32 or wider.

    Args:
        logits: [B, V].
        seen: [B, V] bool, the tokens of each row so far; may be None without repetition penalty.
        lengths: [B], tokens of each row so far, prompt included.
        ending: [n] int64, the ids that end a text.
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.repetition_penalty != 1 and seen is not None:
        penalty = sampling.repetition_penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if sampling.length_penalty != 1:
        shorter = scores / lengths.to(scores.dtype)[:, None] ** sampling.length_penalty
        scores = shorter.index_copy(1, ending, scores[:, ending])
    return scores


def distribution(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What is drawn from: probabilities [B, k] in falling order, 0 where cut off, and the ids [B, k] they belong to.

    k is ``top_k``, or V without it. Probabilities are divided by the sum of those that are left.
    """
    scores = scores / sampling.temperature
    count = min(sampling.top_k, scores.shape[-1]) if sampling.top_k else scores.shape[-1]
    best, ids = scores.topk(count, dim=-1)
    probability = best.softmax(-1)
    if sampling.top_p < 1:
        more_likely = probability.cumsum(-1) - probability
        probability = probability * (more_likely < sampling.top_p)
        probability = probability / probability.sum(-1, keepdim=True)
    return probability, ids


def choose(scores: Tensor, sampling: Sampling, uniform: Tensor | None) -> Tensor:
    """The next token of each row [B].

    Args:
        scores: [B, V], with their penalties.
        uniform: [B] float64 random numbers in [0, 1), one per row; None takes the most likely.
    """
    if uniform is None:
        return scores.argmax(-1)
    probability, ids = distribution(scores, sampling)
    cumulative = probability.double().cumsum(-1)
    place = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    last = (probability > 0).sum(-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(place, last)).squeeze(1)
