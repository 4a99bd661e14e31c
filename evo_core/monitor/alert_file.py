"""The alert file: what was told of a run, one line each; whoever puts down an event first is the one that tells it."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path

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
        try:
            looks = iter(range(_PATIENCE))
            with locked(self._path, give_up=lambda: next(looks, None) is None, must=False):
                return self._put_down(event, ident)
        except OSError as error:
            if not self._said:
                self._said = True
                log.warning("%s cannot be written (%s): an event may be told twice", self._path, error.strerror)
            return True

    def _put_down(self, event: Event, ident: str) -> bool:
        mark = {"attempt": self._attempt, "id": ident}
        with self._path.open("r+", encoding="utf-8", errors="replace") as file:
            for line in file:
                if self._attempt in line and _marks(line) == mark:
                    return False
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(mark | dataclasses.asdict(event), ensure_ascii=False) + "\n")
        return True


def _marks(line: str) -> dict[str, object]:
    try:
        found = json.loads(line)
        return {name: found.get(name) for name in ("attempt", "id")}
    except (ValueError, AttributeError):  # another program's, or half a line
        return {}
