"""The store: a folder that holds every artifact, its state while it is made, and the refs that name some of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evo_core.errors import ConfigError
from evo_core.storage.location import local_path
from tasks.store.artifact import Artifact
from tasks.store.atomic import read_json, write_json
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

    def home(self, step: str, key: str) -> Path:
        """The folder of an artifact: the one that exists for this key, under whatever step name, else a new one."""
        mine = self.root / "artifacts" / f"{step}-{key[:12]}"
        if not (mine / "manifest.json").exists():
            for manifest in (self.root / "artifacts").glob(f"*-{key[:12]}/manifest.json"):
                return manifest.parent
        return mine

    def artifact(self, step: str, key: str) -> Artifact:
        """The artifact with this key, committed or not."""
        return Artifact(self.home(step, key))

    def artifacts(self) -> Iterator[Artifact]:
        """Every committed artifact, the newest last."""
        manifests = list((self.root / "artifacts").glob("*/manifest.json"))
        for manifest in sorted(manifests, key=lambda p: p.stat().st_mtime_ns):
            yield Artifact(manifest.parent)

    def find(self, text: str) -> list[Artifact]:
        """Committed artifacts that `text` can mean: a folder, ``step-key``, a step's name, or the start of a key."""
        text = text.rstrip("/").rpartition("/")[2]
        return [
            a
            for a in self.artifacts()
            if text in (a.home.name, a.manifest["step"]) or (len(text) >= 4 and a.key.startswith(text))
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
        """The recorded runs, the newest last."""
        paths = sorted((self.root / "runs").glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        return [record for record in map(read_json, paths) if record is not None]
