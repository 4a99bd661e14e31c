"""The disk of the store: space, and what claims, commits and crashes rely on."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from evo_core.errors import UserError
from evo_core.storage.atomic import time_of
from evo_core.storage.location import is_remote
from evo_core.storage.lock import try_lock
from flows.doctor.finding import Asked, Finding
from flows.show.humanize import size
from tasks.store import open_store

LITTLE, ALMOST_NONE = 20 << 30, 1 << 30
"""Bytes free below which a checkpoint of a 7B model, or anything at all, may not fit."""
SKEW = 2.0
"""Seconds that a file system's clock may differ from this machine's."""


def look(asked: Asked) -> Iterator[Finding]:
    """Whether runs can keep their artifacts where they would."""
    if asked.root is not None and is_remote(asked.root):
        return  # looked at as S3
    try:
        store = open_store(asked.root)
    except UserError as error:
        yield Finding("store", "problem", str(error), "name a folder with --root")
        return
    folder = next(part for part in (store.root, *store.root.parents) if part.is_dir())
    made = "" if folder == store.root else "; a run makes it"
    yield Finding("store", "ok", f"{store.root} on {_file_system(folder)}{made}")
    yield _space(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".evo-doctor-", dir=folder, ignore_cleanup_errors=True) as probe:
            yield from [_trial(what, try_it, otherwise, Path(probe)) for what, try_it, otherwise in _TRIALS]
            yield _clock(Path(probe))
    except OSError as error:
        hint = "name another folder with --root or EVO_ROOT"
        yield Finding("store", "problem", f"{folder} cannot be written: {error.strerror}", hint)


def _space(folder: Path) -> Finding:
    found, inodes = shutil.disk_usage(folder), os.statvfs(folder)
    told = f"{size(found.free)} of {size(found.total)} free"
    if inodes.f_files and inodes.f_favail < 10_000:
        return Finding("disk", "problem", f"{inodes.f_favail} more files fit", "remove files, or take another disk")
    if found.free < ALMOST_NONE:
        return Finding("disk", "problem", told, "free some, or name another folder with --root or EVO_ROOT")
    if found.free < LITTLE:
        return Finding("disk", "warning", told, "a checkpoint of a 7B model with its optimizer takes 100 GB")
    return Finding("disk", "ok", told)


def _locks(probe: Path) -> None:
    path = probe / "lock"
    first, second = (os.open(path, os.O_RDWR | os.O_CREAT, 0o600) for _ in range(2))
    try:
        if not try_lock(first):
            raise OSError("a free lock is not given")
        if try_lock(second):
            raise OSError("two hold one lock at a time")
    finally:
        os.close(first)
        os.close(second)


def _links(probe: Path) -> None:
    (probe / "file").write_text("x")
    os.link(probe / "file", probe / "link")
    try:
        os.link(probe / "file", probe / "link")
    except FileExistsError:
        return
    raise OSError("a link takes the place of another")


def _sync(probe: Path) -> None:
    descriptor = os.open(probe, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_TRIALS: list[tuple[str, Callable[[Path], None], tuple[str, str]]] = [
    ("hard links", _links, ("problem", "artifacts are committed by one: take a folder on another file system")),
    ("file locks", _locks, ("warning", "two runs may do the same work; on Lustre mount with -o flock")),
    ("sync of folders", _sync, ("warning", "a power cut may take the newest commits with it")),
]


def _trial(what: str, try_it: Callable[[Path], None], otherwise: tuple[str, str], probe: Path) -> Finding:
    try:
        try_it(probe)
    except OSError as error:
        verdict, hint = otherwise
        return Finding(what, "problem" if verdict == "problem" else "warning", error.strerror or str(error), hint)
    return Finding(what, "ok", "work here")


def _clock(probe: Path) -> Finding:
    before = time.time()
    skew = time_of(probe) / 1e9 - before
    took = time.time() - before
    if skew < -SKEW or skew > took + SKEW:
        hint = "let both follow one time server; claims go by the file system's clock"
        return Finding("clock", "warning", f"the disk's clock is {skew:+.1f} s off this machine's", hint)
    return Finding("clock", "ok", "the disk's and this machine's agree")


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder is on."""
    best = ("", "an unknown file system")
    try:
        for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
            _, where, kind, *_ = line.split()
            where = where.encode().decode("unicode_escape")
            if len(where) >= len(best[0]) and (folder == Path(where) or Path(where) in folder.parents):
                best = where, kind
    except (OSError, ValueError):
        pass
    return best[1]
