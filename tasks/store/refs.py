"""Human names for artifacts: ``refs/<name>/<version>.json`` are written once, ``latest.json`` is swapped."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

from evo_core.errors import ConfigError
from tasks.names import composed, name_problem
from tasks.store.atomic import create_json, read_json, write_json

REF = re.compile(r"ref:(?P<name>[^@]+)(@(?P<version>[^@]+))?")


class Refs:
    """The refs of a store. A version is ``{"name", "version", "step", "key", "type", "run", "made"}``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def publish(self, name: str, *, step: str, key: str, type: str, run: str) -> dict[str, Any]:
        """Name an artifact by today's date (``2026-11-20``, then ``2026-11-20.2``) and move ``latest`` to it.

        Publishing what is latest already changes nothing.

        Raises:
            ConfigError: the name cannot be one (`tasks.names`).
        """
        name = composed(name)
        if problem := name_problem(name):
            raise ConfigError(f"{name!r} cannot be the name of a ref", hint=problem)
        latest = read_json(self.folder / name / "latest.json")
        if latest is not None and latest["key"] == key:
            return latest
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        number = 1
        while True:
            version = today if number == 1 else f"{today}.{number}"
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            entry = dict(name=name, version=version, step=step, key=key, type=type, run=run, made=now)
            if create_json(self.folder / name / f"{version}.json", entry):
                break
            number += 1
        write_json(self.folder / name / "latest.json", entry)
        return entry

    def resolve(self, text: str, *, key: str | None = None) -> dict[str, Any]:
        """The version that ``ref:name@version`` names (``@latest`` when left out).

        Raises:
            ConfigError: there is no such ref; the message lists what there is.
        """
        match = REF.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text!r} is no ref", key=key, hint="write ref:NAME or ref:NAME@VERSION")
        name, version = composed(match["name"]), match["version"] or "latest"
        if problem := name_problem(name) or name_problem(version):
            raise ConfigError(f"{text!r} is no ref: {problem}", key=key, hint="write ref:NAME or ref:NAME@VERSION")
        entry = read_json(self.folder / name / f"{version}.json")
        if entry is None:
            known = self.versions(name)
            have = f"versions of {name}: {', '.join(known)}" if known else "nothing was published under this name yet"
            raise ConfigError(
                f"there is no {text} in the store {self.folder.parent}",
                key=key,
                hint=f"{have}; a pipeline's `publish:` block makes refs",
            )
        return entry

    def versions(self, name: str) -> list[str]:
        """Versions of a name, oldest first."""
        found = [p.stem for p in (self.folder / name).glob("*.json") if p.stem != "latest"]
        return sorted(found, key=lambda v: (v.partition(".")[0], int(v.partition(".")[2] or 1)))

    def names(self) -> list[str]:
        """Every published name."""
        return sorted(p.name for p in self.folder.glob("*") if p.is_dir())
