"""The stop file: a number in a file with which a person saves or ends a run from outside."""

from __future__ import annotations

import logging

from evo_core.storage.location import local_path

log = logging.getLogger(__name__)


class StopFile:
    """A file with a step number n: n > 0 saves and ends the run at step n (now, if it is past n), n < 0 saves at step
    -n and goes on, 0 says nothing.

    Args:
        path: the file, written with 0 when the run starts; None for none.
        reads: whether this rank is the one that reads it.
    """

    def __init__(self, path: str | None, *, reads: bool) -> None:
        self._path = local_path(path) if path and reads else None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text("0\n")

    def read(self) -> int:
        """The number; 0 on the ranks that do not read, and where the file holds none."""
        if self._path is None:
            return 0
        try:
            return int(self._path.read_text().strip() or 0)
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            log.warning("stop file %s is not read: %s", self._path, error)
            return 0


def ends(number: int, step: int) -> bool:
    """Whether the run ends after `step` steps."""
    return 0 < number <= step


def saves(number: int, step: int) -> bool:
    """Whether a checkpoint is due after `step` steps."""
    return ends(number, step) or -number == step > 0
