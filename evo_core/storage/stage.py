"""Folders of a store copied to this machine, for readers that map files or open them by name.

A copy lies in the cache (`evo_core.storage.cache`) under the digest of where it came from and of every object's path,
size and ETag: another version of the folder is another copy, and one that is there is used again as long as each file
has its size. The first process of a machine that needs it makes it, under a lock, and the others wait. It appears
whole: what a killed process had copied is removed when the next copy is made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from evo_core.errors import DataError, UserError
from evo_core.storage import atomic
from evo_core.storage.cache import VARIABLE, cache_folder
from evo_core.storage.files import read_error
from evo_core.storage.listed import Listed
from evo_core.storage.location import Location, check_location, is_remote, local_path
from evo_core.storage.lock import locked
from evo_core.storage.s3 import objects
from evo_core.storage.s3.place import Place, place_of
from evo_core.storage.s3.transfer import Wanted, download

log = logging.getLogger(__name__)


def stage(folder: Location, *, wanted: Callable[[str], bool] = lambda path: True, beside: Iterable[str] = ()) -> Path:
    """The folder on this machine: itself, or its copy.

    Args:
        wanted: whether a path below the folder is copied.
        beside: names of files that lie beside the folder, and are copied with it where they are there.

    Raises:
        LocationError: it is no location.
        DataError: there is nothing there, it cannot be read, or it changed meanwhile.
        UserError: there is no room for it, or the cache cannot be written.
    """
    check_location(folder)
    if not is_remote(folder):
        return local_path(folder)
    place = place_of(str(folder))
    name = place.key.rpartition("/")[2] or place.bucket
    try:
        files = _objects(place, name, wanted, beside)
        return _copy(place, files) / name
    except OSError as error:
        source = error.filename if is_remote(error.filename or "") else None
        if source is not None:
            raise read_error(source, error) from error
        root = cache_folder("stores")
        message = f"no copy of {folder} can be kept here ({error.strerror or error})"
        raise UserError(message, file=root, hint=f"{VARIABLE} names another folder") from error


def _objects(
    place: Place, name: str, wanted: Callable[[str], bool], beside: Iterable[str]
) -> dict[str, tuple[Place, Listed]]:
    """What is copied, by its path in the copy."""
    files = {}
    for file in objects.every_object(place):
        if wanted(file.path):
            files[f"{name}/{file.path}"] = place.below(file.path), file
    if not files:
        raise DataError("there is nothing here", file=place.uri, hint="check bucket and prefix")
    if "/" in place.key:
        for other in beside:
            there = place.beside(other)
            with suppress(FileNotFoundError):
                files[other] = there, objects.info(there)
    for path, (_, file) in files.items():
        if {"", ".", ".."} & set(path.split("/")):
            raise DataError("no file of a disk can have this name", file=file.uri, hint="rename it")
    return files


def _copy(place: Place, files: dict[str, tuple[Place, Listed]]) -> Path:
    root = cache_folder("stores")
    described = sorted((path, file.size, file.tag) for path, (_, file) in files.items())
    content = json.dumps([place.endpoint, place.bucket, place.key, described])
    home = root / hashlib.sha256(content.encode()).hexdigest()[:32]
    if _is_whole(home, files):
        return home
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f"{home.name}.lock", must=False):
        if _is_whole(home, files):
            return home
        atomic.clear_drafts(root)
        size = sum(file.size for _, file in files.values())
        if size > (free := shutil.disk_usage(root).free):
            message = f"there are {free:,} bytes free for a copy of {place.uri}, which has {size:,}"
            raise UserError(message, file=root, hint=f"{VARIABLE} names another folder")
        log.info("%s: copying %d files of %s bytes to %s", place.uri, len(files), f"{size:,}", home)
        with atomic.new_folder(home, replace=True) as draft:
            download(Wanted(source, file.size, file.tag, draft / path) for path, (source, file) in files.items())
    return home


def _is_whole(home: Path, files: dict[str, tuple[Place, Listed]]) -> bool:
    try:
        return all((home / path).stat().st_size == file.size for path, (_, file) in files.items())
    except OSError:
        return False
