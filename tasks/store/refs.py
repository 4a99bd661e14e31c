"""Human names for artifacts: ``refs/<name>/<version>.json`` are written once, ``latest.json`` is swapped."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

from evo_core.errors import ConfigError
from evo_core.storage.atomic import clear_drafts
from tasks.params.names import composed, name_problem
from tasks.store.json_file import create_json, read_object, write_json

REF = re.compile(r"ref:(?P<name>[^@]+)(@(?P<version>[^@]+))?")

VERSION = re.compile(r"^(?P<day>\d{4}-\d\d-\d\d)(\.(?P<number>\d+))?$")
KEY = re.compile(r"^[0-9a-f]{64}$")
FIELDS = ("name", "version", "step", "key", "type")


class Refs:
    """The refs of a store. A version is ``{"name", "version", "step", "key", "type", "run", "made"}``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def publish(self, name: str, *, step: str, key: str, type: str, run: str) -> dict[str, Any]:
        """Name an artifact by today's date (``2026-11-20``, then ``2026-11-20.2``) and move ``latest`` to it.

        The day is that of the local clock, by which runs are named and people schedule them. Publishing what is latest
        already changes nothing.

        Raises:
            ConfigError: the name cannot be one (`tasks.params.names`).
        """
        name = composed(name)
        if problem := name_problem(name):
            raise ConfigError(f"{name!r} cannot be the name of a ref", hint=problem)
        clear_drafts(self.folder / name)
        latest = self._read(name, "latest")
        if latest is not None and latest["key"] == key:
            return latest
        newest = self._read(name, self.versions(name)[-1]) if self.versions(name) else None
        if newest is not None and newest["key"] == key:  # a run was killed before it had moved `latest`
            return self._move_latest(newest)
        now = datetime.datetime.now().astimezone()
        today = now.date().isoformat()
        number = 1
        while True:
            version = today if number == 1 else f"{today}.{number}"
            made = now.isoformat(timespec="seconds")
            entry = dict(name=name, version=version, step=step, key=key, type=type, run=run, made=made)
            if create_json(self.folder / name / f"{version}.json", entry):
                break
            number += 1
        return self._move_latest(entry)

    def resolve(self, text: str, *, key: str | None = None) -> dict[str, Any]:
        """The version that ``ref:name@version`` names (``@latest`` when left out).

        Raises:
            ConfigError: there is no such ref, or its file is damaged; the message lists what there is.
        """
        match = REF.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} is no ref", key=key, hint="write ref:NAME or ref:NAME@VERSION")
        name, version = composed(match["name"]), match["version"] or "latest"
        if problem := name_problem(name) or name_problem(version):
            raise ConfigError(f"{text!r} is no ref: {problem}", key=key, hint="write ref:NAME or ref:NAME@VERSION")
        entry = self._read(name, version)
        if entry is None:
            path = self.folder / name / f"{version}.json"
            wrong = f"{path} is damaged" if path.exists() else f"there is no {text} in the store {self.folder.parent}"
            known = self.versions(name)
            have = f"versions of {name}: {', '.join(known)}" if known else "nothing was published under this name yet"
            raise ConfigError(wrong, key=key, hint=f"{have}; a pipeline's `publish:` block makes refs")
        return entry

    def versions(self, name: str) -> list[str]:
        """Versions of a name, oldest first."""
        found = [match for p in (self.folder / name).glob("*.json") if (match := VERSION.match(p.stem))]
        return [match[0] for match in sorted(found, key=lambda m: (m["day"], int(m["number"] or 1)))]

    def _move_latest(self, entry: dict[str, Any]) -> dict[str, Any]:
        write_json(self.folder / entry["name"] / "latest.json", entry)
        return entry

    def _read(self, name: str, version: str) -> dict[str, Any] | None:
        """The entry, or None where there is none or it is damaged."""
        entry = read_object(self.folder / name / f"{version}.json")
        whole = entry is not None and all(isinstance(entry.get(field), str) for field in FIELDS)
        return entry if whole and KEY.match(entry["key"]) else None  # type: ignore[index]

    def names(self) -> list[str]:
        """Every published name."""
        return sorted(p.name for p in self.folder.glob("*") if p.is_dir())
