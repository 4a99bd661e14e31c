"""Schedules of the learning rate and of Adam's beta2: pure functions of the number of updates made so far.

A skipped update (overflow) does not count. Having no state, they need no place in a checkpoint but that number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["cosine", "wsd", "linear", "constant"]
DecayType = Literal["linear", "cosine", "sqrt"]


@dataclass(frozen=True)
class LearningRate:
    """Learning rate: zero for `init_steps`, then linear warm-up to `lr`, then down to `eta_min` in one of several ways.

    With t running from 0 to 1 over the updates between the warm-up and `total_steps`, the rate is
    ``eta_min + (lr - eta_min) f(t)``:

    ========  ==================================================================================================
    cosine    f = (1 + cos(pi t)) / 2 (Loshchilov and Hutter 2016, arXiv:1608.03983)
    linear    f = 1 - t
    constant  f = 1 (and `eta_min` does not matter)
    wsd       f = 1 until the last `decay_ratio` of `total_steps`, then down (warm-up, stable, decay: Hu et al.
              2024, arXiv:2404.06395), with t from 0 to 1 over that part alone: 1 - t, the cosine, or 1 - sqrt(t)
              (Haegele et al. 2024, arXiv:2405.18392), as `decay_type` says
    ========  ==================================================================================================

    Args:
        lr: the peak.
        total_steps: updates after which the rate is `eta_min`; it stays there.
        init_steps: updates at a rate of zero before the warm-up.
        warmup_ratio: part of `total_steps` that warms up; the warm-up has ``int(total_steps * warmup_ratio)`` updates
            and its first one is at ``lr / warmup``, not at zero.
        eta_min: the end.
        last_epoch: -1, or the number of the update to count on from.
        kind, decay_ratio, decay_type: see above.
    """

    lr: float
    total_steps: int
    init_steps: int = 0
    warmup_ratio: float = 0.0
    eta_min: float = 0.0
    last_epoch: int = -1
    kind: Kind = "cosine"
    decay_ratio: float = 0.1
    decay_type: DecayType = "linear"

    def __call__(self, updates: int) -> float:
        """Rate of the update that comes after `updates` of them."""
        t = updates + self.last_epoch + 1 - self.init_steps
        warmup = int(self.total_steps * self.warmup_ratio)
        if t < 0:
            return 0.0
        if t < warmup:
            return self.lr * (t + 1) / warmup
        if self.kind == "constant":
            return self.lr
        end, begin = self.total_steps - self.init_steps, warmup
        if self.kind == "wsd":
            begin = max(begin, end - int(self.total_steps * self.decay_ratio))
        done = min(1.0, (t - begin) / (end - begin)) if end > begin else 1.0
        shape = self.decay_type if self.kind == "wsd" else self.kind
        return self.eta_min + (self.lr - self.eta_min) * _left(shape, max(done, 0.0))


def _left(shape: str, done: float) -> float:
    """What is left of the way down when so much of its time is over, both in [0, 1]."""
    if shape == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - (math.sqrt(done) if shape == "sqrt" else done)


@dataclass(frozen=True)
class Beta2Schedule:
    """Adam's beta2: ``max(init_beta2, 1 - k ** -c)`` at update k; constant where c is zero or less.

    As in InternEvo k is counted up after each update, so that the first one is made with `init_beta2` wherever
    the count begins.

    Args:
        init_beta2: the least value, and the one of the first update.
        c: how fast it rises; 0.8 is Adafactor's choice (Shazeer and Stern 2018, section 7).
        cur_iter: k at the first update; -1 is 0.
    """

    init_beta2: float
    c: float = 0.0
    cur_iter: int = -1

    def __call__(self, updates: int) -> float:
        """Beta2 of the update that comes after `updates` of them."""
        if self.c <= 0 or updates == 0:
            return self.init_beta2
        k = updates + max(self.cur_iter, 0)
        return max(self.init_beta2, 1 - k**-self.c)
