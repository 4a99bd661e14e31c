"""Writing a file so that a reader sees all of it or nothing, whatever dies in between."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from evo_core.errors import DataError
from evo_core.storage.identity import left_by_dead, mark

DRAFT = re.compile(r"^\..*\.(?P<mark>\d+-\d+-[0-9a-f]{8})\.[0-9a-f]+\.(tmp|parts)(\.meta)?$")
"""A file that is being written: hidden, and named by its process, so that others see when that has died."""

OLD_DRAFT = 86400.0
"""Seconds after which a draft counts as left behind where its process cannot be asked for (another machine)."""

UNNAMED = getattr(os, "O_TMPFILE", os.O_DIRECTORY)
"""Opens a file without a name in a folder; where the system has none, opening for writing fails."""

_number = itertools.count()


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Replace `path` by `value` as JSON in one step, durably.

    Args:
        indent: None writes one line, ten times as fast, which counts for lists of ten thousand files.
    """
    write_text(path, _as_text(value, indent))


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step, durably."""
    with draft_of(path) as draft:
        _write(draft, text)
        draft.replace(path)
    sync_folder(path.parent)


def create_json(path: Path, value: Any) -> bool:
    """Write `path` only if nothing is there; returns whether this call wrote it.

    A hard link is the one create-if-absent that is atomic with its content on POSIX file systems, NFS included. Where
    the file system has files without a name, the draft is one: a kill leaves nothing of it.
    """
    text = _as_text(value, 1)
    with draft_of(path) as draft:
        try:
            return _link_unnamed(path, text)
        except OSError:
            _write(draft, text)
            return link_if_absent(draft, path)


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A name beside `path` to write what shall become it. Nothing stays of a draft that cannot be finished (a full
    disk), nor, from the next draft in this folder on, of one whose process was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_drafts(path.parent)
    draft = path.with_name(f".{path.name}.{mark()}.{next(_number)}.tmp")
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def link_if_absent(source: Path, target: Path) -> bool:
    """Hard-link `source` to `target`; False when something else is there already."""
    try:
        os.link(source, target)
    except FileExistsError:
        # NFS may do what was asked, lose its answer, and refuse when it is asked again
        try:
            return source.samefile(target)
        except FileNotFoundError:
            return False
    sync_folder(target.parent)
    return True


def read_json(path: Path) -> Any | None:
    """The JSON in `path`, or None when there is none.

    Raises:
        DataError: it cannot be read as JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"the file is damaged: {_reason(error)}", file=path) from error


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file that may be damaged or not be there (yet): None then."""
    try:
        value = read_json(path)
    except DataError:
        return None
    return value if isinstance(value, dict) else None


def sync_folder(folder: Path) -> None:
    """Make renames and links in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_drafts(folder: Path) -> None:
    """Remove the drafts that processes left in a folder which died while they wrote."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and _left_behind(entry):
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    with suppress(OSError):
                        Path(entry.path).unlink()


def _left_behind(entry: os.DirEntry[str]) -> bool:
    match = DRAFT.match(entry.name)
    dead = left_by_dead(match["mark"]) if match else None
    if dead is not None:
        return dead
    if match is None and not entry.name.endswith(".tmp"):
        return False
    with suppress(OSError):
        return time.time() - entry.stat().st_mtime > OLD_DRAFT
    return False


def _as_text(value: Any, indent: int | None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent) + "\n"


def _link_unnamed(path: Path, text: str) -> bool:
    descriptor = os.open(path.parent, UNNAMED | os.O_WRONLY, 0o666)
    try:
        with open(descriptor, "wb", closefd=False) as out:
            out.write(text.encode())
        os.fsync(descriptor)
        # a folder's descriptor makes Python call linkat, which alone can name what has no name yet
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
    except FileExistsError:
        return False
    finally:
        os.close(descriptor)
    sync_folder(path.parent)
    return True


def _write(draft: Path, text: str) -> None:
    # A file's name that is not UTF-8 holds lone surrogates: written as \\udcff, which JSON reads as it was.
    with draft.open("w", encoding="utf-8", errors="backslashreplace") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "too deeply nested"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
