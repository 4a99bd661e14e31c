"""A folder of this machine that grows, copied to a store again and again behind whoever writes it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from evo_core.errors import UserError
from evo_core.storage.files import copy_file

log = logging.getLogger(__name__)

_EVERY = 60.0
_SHARE = 20
"""Copying takes at most one part in so many of the time: what has grown large is copied less often."""


class Mirror:
    """Copies files that have changed, whole, on a thread of its own. A failure is a warning: the files are still here.

    Args:
        folder: the files; those below its folders too.
        target: the folder in the store.
        flush: called before each look, so that what is held back is in the files.
    """

    def __init__(self, folder: Path, target: str, flush: Callable[[], object]) -> None:
        self._folder, self._target, self._flush = folder, target.rstrip("/"), flush
        self._copied: dict[Path, tuple[int, int]] = {}
        self._failed = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copy what is left, and end; the files may not change any more."""
        self._end.set()
        self._thread.join()
        if not self._copy():
            log.warning("%s is not up to date: %s has everything", self._target, self._folder)

    def _run(self) -> None:
        wait = _EVERY
        while not self._end.wait(wait):
            began = time.monotonic()
            self._flush()
            self._copy()
            wait = max(_EVERY, _SHARE * (time.monotonic() - began))

    def _copy(self) -> bool:
        """Whether the store has every file as it is here."""
        try:
            for path in sorted(path for path in self._folder.rglob("*") if path.is_file()):
                status = path.stat()
                version = status.st_size, status.st_mtime_ns
                if self._copied.get(path) != version:
                    copy_file(path, f"{self._target}/{path.relative_to(self._folder).as_posix()}")
                    self._copied[path] = version
        except (OSError, UserError) as error:
            if not self._failed:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                log.warning("%s is copied to %s later: %s", self._folder, self._target, reason)
            self._failed = True
            return False
        self._failed = False
        return True
