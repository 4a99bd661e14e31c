"""Where the time of a step goes on one rank: what it did itself, and how long it waited for others."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from evo_core.parallel.collectives import seconds_waited


class Timers(NamedTuple):
    """Seconds of one step on this rank.

    Attributes:
        data: until the batch was there; nan on a rank that is given another's, and only waits for it.
        forward_backward: computing gradients; on a CPU without the waiting for messages of other ranks, on a GPU by
            its own clock, with it.
        reduction: until the gradients of all ranks were summed, most of it waiting for the slowest.
        update: of the parameters; on a CPU without the waiting for those of other ranks, on a GPU until it is in line.
    """

    data: float
    forward_backward: float
    reduction: float
    update: float


class Computing:
    """Times work from when it is made to `done`, on the clock of the device that does it."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record()
        else:
            self._began, self._waited = time.perf_counter(), seconds_waited()

    def done(self) -> None:
        """The work is done, or on a GPU in line to be."""
        if self._cuda:
            self._events[1].record()
        else:
            waited = seconds_waited() - self._waited
            self._seconds = time.perf_counter() - self._began - waited

    def seconds(self) -> float:
        """How long it took; on a GPU to be asked when something later has been waited for."""
        return self._events[0].elapsed_time(self._events[1]) / 1e3 if self._cuda else self._seconds
