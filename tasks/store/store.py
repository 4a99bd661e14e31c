"""The store: a folder that holds every artifact, its state while it is made, and the refs that name some of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evo_core.errors import ConfigError, UserError
from evo_core.storage.location import local_path
from tasks.store.artifact import Artifact
from tasks.store.json_file import read_object, write_json
from tasks.store.refs import Refs

DEFAULT_ROOT = "evo_runs"


def open_store(root: str | Path | None = None) -> Store:
    """The store at `root`, else at EVO_ROOT, else at ``evo_runs`` in the current folder. Makes nothing yet.

    Raises:
        ConfigError: the root is no folder of a file system.
    """
    given = str(root or os.environ.get("EVO_ROOT") or DEFAULT_ROOT)
    path = local_path(given, "--root").absolute()
    there = next(part for part in (path, *path.parents) if part.exists())
    if not there.is_dir():
        raise ConfigError("the store must be a folder, and this is a file", file=there, key="--root")
    return Store(path)


class Store:
    """Paths and look-ups; what may change in it and how is in `commit`, `claim` and `refs`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.refs = Refs(root / "refs")

    def home(self, kind: str, key: str) -> Path:
        """The one folder of a key's artifact, whatever its step is called: the commit, attempts and work lie there.

        Stores of Evo 0.1 named folders by the step. Such a folder stays the key's: the committed one, else the newest.
        """
        mine = self.root / "artifacts" / f"{_safe(kind)}-{key[:12]}"
        if (mine / "manifest.json").exists():
            return mine
        homes = self._homes(key)
        committed = [home for home in homes if (home / "manifest.json").exists()]
        if committed or not homes:
            return committed[0] if committed else mine
        return mine if mine in homes else max(homes, key=lambda home: home.stat().st_mtime_ns)

    def artifact(self, kind: str, key: str) -> Artifact:
        """The artifact with this key, committed or not."""
        return Artifact(self.home(kind, key))

    def with_key(self, key: str) -> Artifact | None:
        """The committed artifact with this key, whose kind need not be known."""
        return next((a for home in self._homes(key) if (a := Artifact(home)).exists), None)

    def artifacts(self) -> Iterator[Artifact]:
        """Every committed artifact whose manifest can be read, the newest last."""
        for artifact in self._committed():
            try:
                artifact.manifest  # noqa: B018 (read once, kept)
            except UserError:
                continue  # see `damaged`
            yield artifact

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """Folders of artifacts whose manifest cannot be read, and why."""
        for artifact in self._committed():
            try:
                artifact.manifest  # noqa: B018
            except UserError as error:
                yield artifact.home, error.message

    def find(self, text: str) -> list[Artifact]:
        """Committed artifacts that `text` can mean: a folder, ``step-key``, a step's name, or the start of a key."""
        text = text.rstrip("/").rpartition("/")[2]
        return [
            a
            for a in self.artifacts()
            if text in (a.home.name, a.name, a.manifest["step"]) or (len(text) >= 4 and a.key.startswith(text))
        ]

    def state(self, key: str) -> Path:
        """The state folder of a key: claim, job, progress."""
        return self.root / "state" / key

    def object(self, object_id: str) -> Path:
        """The folder of a shared object (one tokenized file)."""
        return Path(f"{self.root}/objects/{object_id[:2]}/{object_id}")  # asked for ten thousand times in a row

    @property
    def inventory(self) -> Path:
        """Remembered digests of source files."""
        return self.root / "state" / "inventory.parquet"

    def record_run(self, run_id: str, record: dict[str, Any]) -> Path:
        """Write the resolved plan of a run."""
        path = self.root / "runs" / f"{run_id}.json"
        write_json(path, record)
        return path

    def runs(self) -> list[dict[str, Any]]:
        """The recorded runs, the newest last. A damaged record is passed over."""
        paths = sorted((self.root / "runs").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        return [record for record in map(read_object, paths) if record is not None and _is_run(record)]

    def step_names(self) -> dict[str, str]:
        """Key to the name that the newest run which planned it has for its step."""
        return {step["key"]: step["step"] for record in self.runs() for step in record["steps"]}

    def _homes(self, key: str) -> list[Path]:
        ending = f"-{key[:12]}"
        try:
            with os.scandir(self.root / "artifacts") as entries:  # ten thousand in a store, asked for at every step
                return sorted(Path(entry.path) for entry in entries if entry.name.endswith(ending))
        except FileNotFoundError:
            return []

    def _committed(self) -> list[Artifact]:
        manifests = (self.root / "artifacts").glob("*/manifest.json")
        return [Artifact(path.parent) for path in sorted(manifests, key=lambda p: p.stat().st_mtime_ns)]


def _safe(kind: str) -> str:
    """A kind's name as part of a folder's: a user's own may hold anything."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", kind).strip("._")[:80] or "kind"


def _is_run(record: dict[str, Any]) -> bool:
    steps = record.get("steps")
    return (
        all(isinstance(record.get(name), str) for name in ("run", "pipeline", "file"))
        and isinstance(steps, list)
        and all(isinstance(s, dict) and isinstance(s.get("step"), str) and isinstance(s.get("key"), str) for s in steps)
    )
