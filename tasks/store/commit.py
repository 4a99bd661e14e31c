"""Attempts and the commit.

An attempt is a folder that one process writes in place. Its manifest, `attempt.json`, is written last; the commit is
the one moment when that file is hard-linked as the artifact's `manifest.json`, which only works if none is there.
So the first commit wins, whatever claims or clocks say, and a loser's attempt is only garbage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evo_core.errors import DataError
from evo_core.storage.atomic import clear_drafts, sync
from evo_core.storage.files import delete, link_if_absent, link_or_copy, replacing
from tasks.store.artifact import Artifact, read_manifest, wrong_files
from tasks.store.digests import digest_file
from tasks.store.json_file import write_json

MANIFEST = "attempt.json"


def new_attempt(home: Path) -> tuple[int, Path]:
    """A fresh, empty attempt folder and its number."""
    attempts = home / "attempts"
    attempts.mkdir(parents=True, exist_ok=True)
    clear_drafts(attempts)
    number = max((int(p.name) for p in attempts.iterdir() if p.name.isdigit()), default=0)
    while True:
        number += 1
        folder = attempts / str(number)
        try:
            folder.mkdir()
        except FileExistsError:  # another process took the number
            continue
        return number, folder


def seal(folder: Path, manifest: dict[str, Any], known: Mapping[str, str] | None = None) -> None:
    """List and digest every file of an attempt, make them durable, and write its manifest last.

    Args:
        known: path below the folder to digest, of files that are durable already; they are not read again.

    Raises:
        DataError: the step made a file that has the manifest's name.
    """
    taken = folder / MANIFEST
    if taken.exists() and not _is_sealed(folder):
        raise DataError("this name is the manifest's", file=taken, hint="let the step give its file another name")
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != taken):
        name = path.relative_to(folder).as_posix()
        if known and name in known:
            files.append({"path": name, "size": path.stat().st_size, "digest": known[name]})
            continue
        found = digest_file(path)
        files.append({"path": name, "size": found.size, "digest": found.digest})
        sync(path)
    for sub in [p for p in folder.rglob("*") if p.is_dir()]:
        sync(sub)
    write_json(folder / MANIFEST, {**manifest, "files": files})


def commit(home: Path, number: int, *, replace: bool = False) -> Artifact:
    """Make attempt `number` the artifact, or return the one that was committed before it.

    Args:
        replace: a forced rebuild takes the place of the earlier commit (atomically).
    """
    source = home / "attempts" / str(number) / MANIFEST
    target = home / "manifest.json"
    if replace and target.exists():
        with replacing(target) as draft:
            link_or_copy(source, draft)
    else:
        clear_drafts(home)
        link_if_absent(source, target)
    return Artifact(home)


def finish_sealed(home: Path) -> Artifact | None:
    """Commit an attempt that was sealed by a process that died before its commit."""
    for folder in sorted((home / "attempts").glob("[0-9]*"), key=lambda p: int(p.name)):
        if _is_sealed(folder):
            return commit(home, int(folder.name))
    return None


def discard(home: Path, number: int) -> None:
    """Remove an attempt that will not be committed."""
    delete(home / "attempts" / str(number))


def discard_unsealed(home: Path, *, but: int | None = None) -> None:
    """Remove what dead processes left: attempts without a manifest. Only the holder of the claim may call this."""
    for folder in (home / "attempts").glob("[0-9]*"):
        if not (folder / MANIFEST).exists() and folder.name != str(but):
            delete(folder)


def discard_home_if_empty(home: Path) -> None:
    """After a failed first attempt: leave no empty folders behind."""
    for folder in (home / "attempts", home / "work", home):
        try:
            folder.rmdir()
        except OSError:  # holds something worth keeping (checkpoints, a commit), or never was there
            continue


def _is_sealed(folder: Path) -> bool:
    """Whether an attempt is whole: its manifest can be read, and every file is there as listed."""
    try:
        manifest = read_manifest(folder / MANIFEST)
        return manifest is not None and not wrong_files(folder, manifest["files"])
    except DataError:
        return False
