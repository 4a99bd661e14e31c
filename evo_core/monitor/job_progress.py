"""Whether any rank of a job makes progress: one number in the store over which the ranks found each other.

A rank that waits in a barrier while another writes a checkpoint makes none itself, and is not stuck. Each rank adds 1
at every look if it made progress since the last, and sees by the sum whether anybody did: one small message per rank
and look, however many they are.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch.distributed as dist

log = logging.getLogger(__name__)

_KEY = "evo/progress"


class JobProgress:
    """Asks the store from a thread of its own: one whose server is stopped or gone may never answer.

    Args:
        store: a connection that nobody else uses; None for a process alone.
        period: seconds between two looks.
        beats: something that changes with the progress of this rank.
    """

    def __init__(self, store: dist.Store | None, period: float, beats: Callable[[], object]) -> None:
        self._store, self._period, self._beats = store, period, beats
        self._sum = 0
        self._done = threading.Event()
        if store is not None:
            threading.Thread(target=self._run, name="progress of the job", daemon=True).start()

    def seen(self) -> int:
        """A number that changes when a rank makes progress, as far as is known."""
        return self._sum

    def close(self) -> None:
        """Ask no more."""
        self._done.set()

    def _run(self) -> None:
        last = self._beats()
        while not self._done.wait(self._period):
            now = self._beats()
            try:
                assert self._store is not None
                self._sum = self._store.add(_KEY, int(now != last))
            except Exception as error:  # for once, or whoever serves it has ended: then this rank will too
                log.debug("the progress of other ranks is not known: %s", error)
                continue
            last = now
