"""Dynamic loss scaling: keeps the gradients of 16-bit models inside the range of their type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

SMALLEST = 2.0**-24
"""The scale falls no further where nothing else is said: gradients of a 16-bit type would vanish, which counts as good
updates, and at last the scale itself would."""


@dataclass
class LossScaler:
    """A scale that halves when gradients overflow and doubles when they have not for long.

    After `hysteresis` overflows the scale is backed off, and from then on at each further one, until a growth clears
    the count. `growth_interval` updates without an overflow in between make it grow.

    Args:
        scale: the scale now; the loss is multiplied by it before backward.
        min_scale: lower bound; None is `SMALLEST`.
        max_scale: upper bound, or None.
        growth_factor: > 1.
        backoff_factor: between 0 and 1.
        growth_interval: good updates before a growth.
        hysteresis: overflows before a back-off.
        enabled: False keeps the scale at 1 for ever, for types with the range of float32.
    """

    scale: float = 2.0**16
    min_scale: float | None = None
    max_scale: float | None = None
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 1000
    hysteresis: int = 2
    enabled: bool = True
    good_updates: int = 0
    overflows: int = 0

    def __post_init__(self) -> None:
        if not self.enabled:
            self.scale = 1.0

    def update(self, *, overflow: bool) -> None:
        """Take note of one update, or of one that was skipped because gradients were inf or nan."""
        if not self.enabled:
            return
        if overflow:
            self.good_updates = 0
            self.overflows += 1
            if self.overflows >= self.hysteresis:
                lowest = self.min_scale or min(SMALLEST, self.scale)
                self.scale = max(self.scale * self.backoff_factor, lowest)
            return
        self.good_updates += 1
        if self.good_updates >= self.growth_interval:  # above it where a resumed run has a shorter interval
            self.good_updates = self.overflows = 0
            grown = self.scale * self.growth_factor
            self.scale = grown if self.max_scale is None else min(grown, self.max_scale)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; nothing of a run without scaling."""
        if not self.enabled:
            return {}
        return {"scale": self.scale, "good_updates": self.good_updates, "overflows": self.overflows}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint; one without scaling says nothing to a run with it, and the other way round."""
        if self.enabled and state:
            self.scale = float(state["scale"])
            self.good_updates, self.overflows = int(state["good_updates"]), int(state["overflows"])


def needs_scaling(dtype: torch.dtype) -> bool:
    """Whether a model of this type trains with a loss scale: the 16-bit types do, as in InternEvo."""
    return dtype in (torch.float16, torch.bfloat16)
