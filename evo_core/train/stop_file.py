"""The stop file: a number in a file with which a person saves or ends a run from outside."""

from __future__ import annotations

import logging

from evo_core.errors import ConfigError
from evo_core.parallel.collectives import on_first
from evo_core.storage.files import write_file
from evo_core.storage.location import local_path

log = logging.getLogger(__name__)

_MOST = 2**53
"""No run comes so far, and ranks tell each other the number as a float."""

_MOST_CHARACTERS = 10_000


class StopFile:
    """A file with a step number, whose meaning `checkpointing.Asked` tells. Every rank must make one.

    Args:
        path: the file, written with 0 when the run starts; None for none.
        reads: whether this rank is the one that reads it.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: str | None, *, reads: bool) -> None:
        self._path = local_path(path) if path else None
        self._refused = ""
        on_first(self._begin)
        if not reads:
            self._path = None

    def _begin(self) -> None:
        if self._path is None:
            return
        try:
            write_file(self._path, "0\n", durable=False)
        except OSError as error:
            raise ConfigError(
                f"cannot be written: {error.strerror}", file=self._path, key="ckpt.stop_file_path"
            ) from error

    def read(self) -> int:
        """The number; 0 on the ranks that do not read, and where the file holds none."""
        if self._path is None:
            return 0
        text = ""
        try:
            with self._path.open() as stream:
                text = stream.read(_MOST_CHARACTERS)
            return max(-_MOST, min(int(text.strip() or 0), _MOST))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            if text != self._refused or isinstance(error, OSError):
                why = error.strerror if isinstance(error, OSError) else f"{text.strip()[:40]!r} is no step number"
                log.warning("stop file %s is not read: %s", self._path, why)
            self._refused = text
            return 0
