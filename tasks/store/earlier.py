"""Earlier artifacts of a kind, for a step that can take over what did not change."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from evo_core.errors import UserError
from tasks.store import Artifact, Store

T = TypeVar("T")

LOOK_AT = 8
"""Artifacts that are looked at: two corpora may take turns in one store, but not dozens."""


def earlier(store: Store, kind: str, version: int, params: Mapping[str, Any] | None = None) -> Iterator[Artifact]:
    """Committed artifacts of a kind that are not damaged, the newest first.

    Args:
        params: only artifacts with these identity parameters.
    """
    with os.scandir(store.root / "artifacts") as entries:
        homes = [entry.path for entry in entries if entry.is_dir()]
    times = {home: time for home in homes if (time := _time(home)) is not None}
    for home in sorted(times, key=times.__getitem__, reverse=True):
        artifact = Artifact(Path(home))
        try:
            identity = artifact.manifest["identity"]
        except UserError:
            continue
        if (identity.get("kind"), identity.get("version")) != (kind, version):
            continue
        if (params is None or identity.get("params") == params) and artifact.damage() is None:
            yield artifact


def most_alike(artifacts: Iterator[Artifact], read: Callable[[Artifact], tuple[T, float] | None]) -> T | None:
    """What `read` makes of the first artifact that shares half of its content, else of the one that shares most.

    Args:
        read: gives something and how much of what is needed now (0 to 1) it has; None for an artifact to pass over.
    """
    best: tuple[T, float] | None = None
    for artifact in itertools.islice(artifacts, LOOK_AT):
        found = read(artifact)
        if found is not None and (best is None or found[1] > best[1]):
            best = found
        if best is not None and best[1] >= 0.5:
            break
    return best[0] if best and best[1] > 0 else None


def _time(home: str) -> int | None:
    try:
        return Path(home, "manifest.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None
