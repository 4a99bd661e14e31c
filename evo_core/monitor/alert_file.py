"""The alert file: what was told of a run, one line each; whoever puts down an event first is the one that tells it."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from evo_core.errors import ConfigError
from evo_core.monitor.events import Event
from evo_core.storage.lock import locked

log = logging.getLogger(__name__)

FILE = "alerts.jsonl"

_PATIENCE = 20
"""Looks at a lock that another rank holds, of a tenth of a second at most."""


class AlertFile:
    """One per run, which all its ranks open.

    Args:
        path: the file.
        attempt: what tells this try of the run from those before it, alike on every rank.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: Path, attempt: str, key: str = "monitor.alert.alert_file_path") -> None:
        self._path, self._attempt, self._said = path, attempt, False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a"):
                pass
        except OSError as error:
            hint = "name a file that every rank can write"
            raise ConfigError(f"cannot be written: {error.strerror}", file=path, key=key, hint=hint) from error

    def first(self, event: Event, ident: str) -> bool:
        """Put down an event that has not been yet; whether it was this call that did.

        Args:
            ident: what tells the event from others of this attempt, alike on every rank that may tell it.
        """
        mark = {"attempt": self._attempt, "id": ident}
        try:
            return not self._holds(mark) and self._put_down(event, mark)
        except OSError as error:
            if not self._said:
                self._said = True
                log.warning("%s cannot be written (%s): an event may be told twice", self._path, error.strerror)
            return True

    def _put_down(self, event: Event, mark: Mapping[str, str]) -> bool:
        looks = iter(range(_PATIENCE))
        try:
            with locked(self._path, give_up=lambda: next(looks, None) is None, must=False):
                if self._holds(mark):
                    return False
                line = json.dumps({**mark, **dataclasses.asdict(event)}, ensure_ascii=False) + "\n"
                with self._path.open("a+b") as file:
                    file.write(_after(file) + line.encode("utf-8", "replace"))
        except BlockingIOError:  # all ranks of a large job may come at once
            return not self._holds(mark)
        return True

    def _holds(self, mark: Mapping[str, str]) -> bool:
        with self._path.open(encoding="utf-8", errors="replace") as file:
            return any(self._attempt in line and _marks(line) == mark for line in file)


def _after(file: BinaryIO) -> bytes:
    """What goes before a new line: a disk that was full may have left half of the one before."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    return b"" if file.read(1) in (b"", b"\n") else b"\n"


def _marks(line: str) -> dict[str, object]:
    try:
        found = json.loads(line)
        return {name: found.get(name) for name in ("attempt", "id")}
    except (ValueError, AttributeError):  # another program's, or half a line
        return {}
