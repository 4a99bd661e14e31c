"""Checkpoint folders: how they are named, made once, found again and removed.

``<save folder>/<step>`` is a checkpoint after that many steps, ``<save folder>/snapshot/<step>`` a snapshot. A folder
is made once and never written again: where the name is taken (an attempt that died while it saved), the next one is
``<step>-2``. It counts as a checkpoint only once ``manifest.json`` is in it.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from evo_core.config import local_path
from evo_core.errors import CheckpointError

MANIFEST = "manifest.json"
SNAPSHOTS = "snapshot"
SNAPSHOTS_KEPT = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A checkpoint folder that was found, complete or not."""

    path: Path
    step: int
    attempt: int
    complete: bool
    snapshot: bool

    @property
    def age(self) -> tuple[int, int]:
        """Sorts folders from the oldest to the newest."""
        return self.step, self.attempt


def find(root: Path) -> list[Found]:
    """Every checkpoint folder below a save folder, snapshots included, newest first."""
    found = []
    for folder, snapshot in ((root, False), (root / SNAPSHOTS, True)):
        for path in folder.iterdir() if folder.is_dir() else ():
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", path.name)
            if match and path.is_dir():
                complete = (path / MANIFEST).is_file()
                found.append(Found(path, int(match[1]), int(match[2] or 1), complete, snapshot))
    return sorted(found, key=lambda f: (f.age, not f.snapshot), reverse=True)


def complete_ones(root: Path) -> list[Found]:
    """The complete checkpoints below a save folder, newest first; warns of incomplete ones among the newest."""
    complete: list[Found] = []
    for candidate in find(root):
        if candidate.complete:
            complete.append(candidate)
        elif not complete:
            log.warning("checkpoint %s is incomplete (no %s): ignored", candidate.path, MANIFEST)
    return complete


def newest_complete(root: str | Path) -> Path | None:
    """The newest complete checkpoint below a save folder, or None; warns of newer incomplete ones."""
    complete = complete_ones(local_path(str(root)))
    return complete[0].path if complete else None


def create(root: Path, step: int, *, snapshot: bool = False) -> Path:
    """Make a new, empty checkpoint folder for a step, under the first name that is free."""
    folder = root / SNAPSHOTS if snapshot else root
    folder.mkdir(parents=True, exist_ok=True)
    attempt = 1
    while True:
        path = folder / (str(step) if attempt == 1 else f"{step}-{attempt}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            attempt += 1


def resolve(uri: str | Path) -> Path:
    """The folder of weights that a path or a hub id means: of our own checkpoints the newest complete one.

    Raises:
        CheckpointError: there is none.
    """
    from evo_core.checkpoint.formats import locate

    return locate(uri)[1]


def resolve_own(path: Path) -> Path:
    """The checkpoint of ours that a folder means: itself, or the newest complete one in it.

    Raises:
        CheckpointError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    if not path.is_dir():
        raise CheckpointError("no such checkpoint folder", file=path)
    newest = newest_complete(path)
    if newest is None:
        raise CheckpointError(
            f"no complete checkpoint here: neither {MANIFEST} nor a folder <step>/{MANIFEST}",
            file=path,
            hint="nor another system's weights: config.json with safetensors or pytorch_model.bin, params.json with "
            "consolidated.00.pth, or model_tp0_pp0.pt",
        )
    return newest


def remove_old(root: Path, keep: int | None) -> None:
    """Remove all but the newest `keep` complete checkpoints (None keeps all) and the newest two snapshots.

    Incomplete folders older than a kept checkpoint go too: nothing will ever complete them.
    """
    everything = find(root)
    for snapshot, kept in ((False, keep), (True, SNAPSHOTS_KEPT)):
        if kept is None:
            continue
        folders = [f for f in everything if f.snapshot == snapshot]
        newest = [f for f in folders if f.complete][:kept]
        for folder in folders:
            if newest and folder not in newest and folder.age < newest[0].age:
                remove(folder.path)


def remove(path: Path) -> None:
    """Remove a checkpoint; its manifest goes first, so that a half-removed one is never taken for complete."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)
