"""Schedules of the learning rate and of Adam's beta2: pure functions of the number of updates made so far.

A skipped update (overflow) does not count. Having no state, they need no place in a checkpoint but that number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineWithWarmup:
    """Learning rate: zero for `init_steps`, then linear warm-up, then a cosine from `lr` down to `eta_min`.

    Args:
        lr: the peak.
        total_steps: updates after which the cosine has reached `eta_min`; it stays there.
        init_steps: updates at a rate of zero before the warm-up.
        warmup_ratio: part of `total_steps` that warms up; the warm-up has ``int(total_steps * warmup_ratio)`` updates
            and its first one is at ``lr / warmup``, not at zero.
        eta_min: the end.
        last_epoch: -1, or the number of the update to count on from.
    """

    lr: float
    total_steps: int
    init_steps: int = 0
    warmup_ratio: float = 0.0
    eta_min: float = 0.0
    last_epoch: int = -1

    def __call__(self, updates: int) -> float:
        """Rate of the update that comes after `updates` of them."""
        t = updates + self.last_epoch + 1 - self.init_steps
        warmup = int(self.total_steps * self.warmup_ratio)
        if t < 0:
            return 0.0
        if t < warmup:
            return self.lr * (t + 1) / warmup
        decay = self.total_steps - self.init_steps - warmup
        done = min(1.0, (t - warmup) / decay) if decay > 0 else 1.0
        return self.eta_min + (self.lr - self.eta_min) * (1 + math.cos(math.pi * done)) / 2


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
