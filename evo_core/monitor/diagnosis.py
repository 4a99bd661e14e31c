"""Who is slow: at an interval every rank tells where its time went, and one that takes longer than the others, or than
it did before, is named with its machine."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from evo_core.parallel.collectives import gather_numbers

if TYPE_CHECKING:
    from evo_core.parallel.mesh import Axis
    from evo_core.train.timers import Timers

log = logging.getLogger(__name__)

NAMES = ("data", "forward and backward", "reduction", "update")
"""The timers, in the order of `Timers`."""

_OWN = (0, 1, 3)
"""Those of a rank's own work: in the reduction the slowest rank waits the least."""

_LEAST = 0.5
"""Seconds of a mean below which nobody is called slow."""

_PAST, _ENOUGH = 10, 5
"""Intervals that a rank is compared with, and how many there must be."""

_NAMED = 8
"""Ranks that are named one by one."""


class Diagnosis:
    """Collects the times of the steps of an interval; every rank has one.

    Args:
        ratio: how many times the mean is slow; below 1 it counts as 1.
        world: all ranks.
        hosts: the machine of each.
        device: of the ranks' messages.
        tell: is handed what is to be told of slow ranks, on the one rank that tells; None on the others.
    """

    def __init__(
        self,
        ratio: float,
        world: Axis,
        hosts: Sequence[str],
        device: torch.device,
        tell: Callable[[str], None] | None,
    ) -> None:
        self._ratio, self._world, self._hosts, self._device, self._tell = max(1.0, ratio), world, hosts, device, tell
        self._sums, self._steps = np.zeros(len(NAMES)), 0
        self._past: deque[np.ndarray] = deque(maxlen=_PAST)

    def add(self, timers: Timers) -> None:
        """A step is done."""
        self._sums += timers
        self._steps += 1

    def diagnose(self) -> None:
        """Compare the ranks since the last call; every rank must call it after the same step."""
        seconds = gather_numbers((self._sums / max(1, self._steps)).tolist(), self._device, self._world.group).numpy()
        some, self._sums, self._steps = self._steps > 0, np.zeros(len(NAMES)), 0
        if self._tell is None or not some:
            return
        log.info("seconds of a step: %s", "; ".join(self._summary(name, seconds[:, i]) for i, name in enumerate(NAMES)))
        if said := "\n".join(self._slow(seconds)):  # at once: of alerts of one kind the second would be held back
            log.warning("%s", said)
            self._tell(said)
        self._past.append(seconds)

    def _summary(self, name: str, seconds: np.ndarray) -> str:
        longest = f", at most {np.nanmax(seconds):.3f} on rank {np.nanargmax(seconds)}" if len(seconds) > 1 else ""
        return f"{name} {np.nanmean(seconds):.3f}{longest}"

    def _slow(self, seconds: np.ndarray) -> list[str]:
        said = []
        for timer in _OWN:
            now, name = seconds[:, timer], NAMES[timer]
            if slow := slow_ranks(now, self._ratio):
                said.append(f"slow in {name}: {self._named(slow, now)}; the mean is {trimmed_mean(now):.3f} s a step")
            past = [interval[:, timer] for interval in self._past]
            slower = [rank for rank in slower_ranks(now, past, self._ratio) if rank not in slow]
            if len(slower) > len(now) // 2 and len(now) > 1:
                said.append(
                    f"{len(slower)} of {len(now)} ranks are slower in {name} than they were: {np.nanmean(now):.3f} s"
                )
            elif slower:
                said.append(f"slower in {name} than before: {self._named(slower, now)}")
        return said

    def _named(self, ranks: Sequence[int], seconds: np.ndarray) -> str:
        named = ", ".join(f"rank {rank} on {self._hosts[rank]} ({seconds[rank]:.3f} s)" for rank in ranks[:_NAMED])
        return named + (f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else "")


def trimmed_mean(seconds: Sequence[float] | np.ndarray) -> float:
    """The mean of those that are known; of more than four without the smallest and the largest."""
    known = np.sort([each for each in seconds if not np.isnan(each)])
    return float((known[1:-1] if len(known) > 4 else known).mean()) if len(known) else np.nan


def slow_ranks(seconds: np.ndarray, ratio: float) -> list[int]:
    """The ranks that take longer than `ratio` times the trimmed mean, where that is half a second or more."""
    mean = trimmed_mean(seconds)
    return [] if not mean >= _LEAST else [int(rank) for rank in np.flatnonzero(seconds > ratio * mean)]


def slower_ranks(seconds: np.ndarray, past: Sequence[np.ndarray], ratio: float) -> list[int]:
    """The ranks that take longer than `ratio` times what they took over the intervals before.

    Args:
        seconds: [ranks] now.
        past: the same of earlier intervals; of fewer than five nothing is concluded.
    """
    if len(past) < _ENOUGH:
        return []
    before = [trimmed_mean(own) for own in np.stack(past, axis=1)]
    return [rank for rank, mean in enumerate(before) if mean >= _LEAST and seconds[rank] > ratio * mean]
