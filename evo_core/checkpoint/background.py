"""Checkpoints written behind the training: a step waits for a copy of what is saved, and a thread does the rest.

The thread's ranks talk over a process group of their own, so that nothing of it mixes with what the steps send. One
checkpoint is written at a time: the next one, and the end of the run, wait for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from evo_core.checkpoint.staging import HostCopies, Staged, stage
from evo_core.errors import UserError
from evo_core.parallel.collectives import RankFailed
from evo_core.placement import Placed
from evo_core.pulse import waiting_for_others
from evo_core.storage.location import Location

log = logging.getLogger(__name__)

_PATIENCE = 300.0
"""Seconds that a run which ends with an error waits for a checkpoint: other ranks may hang and never complete it."""

_LONGEST = timedelta(hours=12)
"""For which one rank may write while the others have written. Half an hour, the default, is not enough for a store that
is slow on one node; a rank that is gone shows in the steps."""

Write = Callable[[Staged, dist.ProcessGroup], Location]
"""Writes what was staged, over a group of all ranks, and returns the folder."""


class BackgroundSaves:
    """Writes one checkpoint after another behind the training; every rank must make one and call it alike."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_LONGEST)
        self._copies = HostCopies()
        self._thread: threading.Thread | None = None
        self._saved: Location | None = None
        self._failure: BaseException | None = None
        self._alone = False

    def start(self, tensors: Mapping[str, Mapping[str, Placed]], write: Write) -> None:
        """Copy the tensors, by part of the checkpoint and name, and begin to write them; nothing else is under way."""
        assert self._thread is None
        staged = stage(tensors, self._copies)
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        # As a daemon it holds up no rank for ever that ends with an error: the others may hang (see `settle`).
        self._thread = threading.Thread(target=self._run, args=(staged, write, device), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> Location | None:
        """The checkpoint that was begun, complete; None where none was begun since the last call.

        Raises:
            UserError: it could not be written, twice; on every rank, and another one may be begun.
            RankFailed: the same, where a rank met an error that is no user's mistake.
            BaseException: what ended the writing on this rank alone: see `check`.
        """
        if self._thread is None:
            return None
        with waiting_for_others():
            self._thread.join()
        self._thread = None
        self.check()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return self._saved

    def check(self) -> None:
        """See that the ranks' threads are in step, as far as this rank knows.

        Raises:
            BaseException: what ended the writing on this rank without the others being told. They wait for it, and only
                the end of this process tells them.
        """
        if self._alone and self._failure is not None:
            raise self._failure

    def settle(self) -> None:
        """Let what was begun come to its end before an error ends this rank; never raises, and waits minutes at most.

        The other ranks' threads go on meanwhile; where a rank is gone, the connection to it breaks and the wait ends.
        """
        if self._thread is not None and self._thread.is_alive():
            log.warning("an error ends this rank once the checkpoint that is being written is complete or lost")
            with waiting_for_others():
                self._thread.join(_PATIENCE)

    def _run(self, staged: Staged, write: Write, device: int | None) -> None:
        try:
            if device is not None:  # each thread has a GPU of its own choice, and begins with number 0
                torch.cuda.set_device(device)
            try:
                self._saved = write(staged, self._group)
            except Exception as error:
                if not self._is_told(error):
                    raise
                if dist.get_rank() == 0:
                    log.warning("%s: trying once more", error)
                self._saved = write(staged, self._group)
        except BaseException as error:
            known = error if not isinstance(error, UserError) else None
            log.error("a checkpoint that was written in the background is lost: %s", error, exc_info=known)
            self._failure, self._alone = error, not self._is_told(error)

    def _is_told(self, error: BaseException) -> bool:
        """Whether every rank has the error, so that their threads are still in step."""
        return isinstance(error, UserError | RankFailed) or dist.get_world_size(self._group) == 1
