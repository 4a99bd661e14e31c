"""Perplexity, as training, evaluation, n-gram baselines and pages report it."""

from __future__ import annotations

import math


def perplexity(loss: float) -> float:
    """exp of a loss in nats a token; infinite where that leaves the range of a float."""
    return math.exp(loss) if loss < 700 else math.inf
