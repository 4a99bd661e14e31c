"""Which raw files there are: the one listing of every command and step, of a folder on disk or in an object store.

- Files at any depth, in the order of their paths (by code point, with forward slashes), empty ones too.
- Links are followed once: a folder is read under one name, its own where it lies below the root, else the first of
  its links. So a loop ends. A link to a file is a file, as a copy or a hard link is.
- Hidden names, those below the root with a part that begins with a dot, are left out.
- What is left out is counted, by reason: hidden, linked again, links to nothing, unreadable folders, devices.

A folder and the same files in a store are listed alike.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from evo_core.data.raw.files import file_exists, file_name, filesystem, is_uri, local_path, read_error
from evo_core.data.raw.patterns import any_of, depth_of, split_pattern
from evo_core.errors import DataError, printable
from evo_core.storage.location import Location

HIDDEN, AGAIN, DANGLING = "hidden", "linked again", "linked to nothing"
UNREADABLE, SPECIAL = "unreadable", "no regular file"
OTHER_FORMAT, EMPTY = "of another format", "empty"

_HIDDEN_PART = re.compile(r"(?:[^/]*/)*?\.[^/]*")


@dataclass(frozen=True)
class Listed:
    """One raw file.

    Attributes:
        path: relative to the folder, with forward slashes.
        uri: a path, or a URI.
        size: bytes.
        modified: seconds since 1970.
        mtime_ns: the same of a local file, as the file system says it; else 0.
        tag: what an object store says of the content (its ETag); empty for a local file.
    """

    path: str
    uri: str
    size: int
    modified: float
    mtime_ns: int = 0
    tag: str = ""


@dataclass
class LeftOut:
    """How much a listing passed over, by reason, with the first of each."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """Count a file, or a folder as one."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first[reason] = min(self.first.get(reason, path), path)

    def update(self, other: LeftOut) -> None:
        """Count what another listing left out."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.first.setdefault(reason, other.first[reason])

    @property
    def total(self) -> int:
        """Files and folders left out."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        """``3 hidden (.git), 1 linked again (loop)``; empty where nothing is left out."""
        return ", ".join(
            f"{count:,} {reason} ({printable(self.first[reason])})" for reason, count in sorted(self.counts.items())
        )


@dataclass
class Listing:
    """Files in the order of their paths, and what was left out."""

    files: list[Listed]
    left_out: LeftOut

    def only(self, wanted: Callable[[Listed], bool], reason: str) -> Self:
        """The files that are wanted; the others count as left out."""
        for file in self.files:
            if not wanted(file):
                self.left_out.add(reason, file.path)
        return type(self)([file for file in self.files if wanted(file)], self.left_out)

    def check_names(self) -> Self:
        """Itself, if every name can be written down.

        Raises:
            DataError: a name is not UTF-8, or has an empty part; names that nobody asks for do not matter.
        """
        for file in self.files:
            try:
                file.uri.encode()
            except UnicodeEncodeError:
                raise DataError(
                    "this file's name is not UTF-8", file=file.uri, hint="rename it, or leave it out"
                ) from None
            if "" in file.path.split("/"):
                raise DataError("this file's name has an empty part (//)", file=file.uri, hint="rename it")
        return self


def find_files(location: Location) -> Listing:
    """The files that a location means: itself, those below it if it is a folder, or those that fit a pattern.

    Raises:
        DataError: there is none, or the store cannot be asked.
    """
    if file_exists(location):
        return Listing([_one(location)], LeftOut())
    listing = _below(location)
    if not listing.files:
        left_out = f"left out: {listing.left_out}" if listing.left_out.total else None
        message = "there is no such file, no file in such a folder and none that matches"
        raise DataError(message, file=location, hint=left_out)
    return listing


def list_folder(root: Location, *, depth: int | None = None) -> Listing:
    """Every file below a folder.

    Args:
        depth: the most parts that a file's path may have below the root; None for any number.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    listing = _in_store(str(root)) if is_uri(root) else _Walk(local_path(root), depth).listing()
    listing.files.sort(key=lambda file: file.path)
    return listing


def _below(location: Location) -> Listing:
    text = str(location) if is_uri(location) else str(local_path(location))
    if not is_uri(text) and Path(text).is_dir():
        return list_folder(Path(text))
    folder, pattern = split_pattern(text)
    if not pattern:
        return list_folder(text) if is_uri(text) else Listing([], LeftOut())
    if not is_uri(text) and not Path(folder).is_dir():
        return Listing([], LeftOut())
    listing = list_folder(folder if is_uri(text) else Path(folder), depth=depth_of(pattern))
    fits = any_of((pattern,))
    return Listing([file for file in listing.files if fits.fullmatch(file.path)], listing.left_out)


def _one(location: Location) -> Listed:
    if is_uri(location):
        fs, path = filesystem(str(location))
        try:
            return _object(file_name(location), str(location), fs.info(path))
        except Exception as error:  # every library of a store has its own
            raise read_error(location, error) from error
    file = local_path(location)
    return _file(file.name, str(file), file.stat())


def _file(path: str, uri: str, status: os.stat_result) -> Listed:
    return Listed(path, uri, status.st_size, status.st_mtime, status.st_mtime_ns)


class _Walk:
    """One way through a folder on disk: first all that lies below it, then what its links lead to, in their order."""

    def __init__(self, root: Path, depth: int | None) -> None:
        self._root, self._depth = str(root).rstrip("/"), depth
        self._seen: set[tuple[int, int]] = set()
        self._files: list[Listed] = []
        self._left_out = LeftOut()
        self._links = [""]

    def listing(self) -> Listing:
        if not Path(self._root or "/").is_dir():
            what = "this is no folder" if Path(self._root).exists() else "there is no such folder"
            raise DataError(what, file=self._root)
        while self._links:
            self._links.sort(reverse=True)
            folders = [self._links.pop()]
            while folders:
                folders += self._in(folders.pop())
        return Listing(self._files, self._left_out)

    def _in(self, folder: str) -> Iterator[str]:
        """Take the files of a folder, remember its links to folders, and give its own folders."""
        path = f"{self._root}/{folder}"
        try:
            status = Path(path).stat()
            if (status.st_dev, status.st_ino) in self._seen:
                self._left_out.add(AGAIN, folder.rstrip("/"))
                return
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as scan:
                entries = list(scan)
        except OSError as error:
            if not folder:
                raise read_error(Path(path), error) from error
            self._left_out.add(UNREADABLE, folder.rstrip("/"))
            return
        for entry in entries:
            below = f"{folder}{entry.name}"
            if entry.name.startswith("."):
                self._left_out.add(HIDDEN, below)
                continue
            try:
                status = entry.stat()
            except OSError:
                if entry.is_symlink():
                    self._left_out.add(DANGLING, below)
                continue  # another is gone since the folder was read
            if stat.S_ISREG(status.st_mode):
                self._files.append(_file(below, f"{self._root}/{below}", status))
            elif not stat.S_ISDIR(status.st_mode):
                self._left_out.add(SPECIAL, below)
            elif self._depth is not None and below.count("/") + 1 >= self._depth:
                continue
            elif entry.is_symlink():
                self._links.append(f"{below}/")
            else:
                yield f"{below}/"


def _in_store(root: str) -> Listing:
    try:
        fs, top = filesystem(root)
        fs.invalidate_cache()  # listings are remembered by the process otherwise
        found: dict[str, dict[str, Any]] = fs.find(top, detail=True)
        if not found and not fs.exists(top):
            raise DataError("there is nothing here", file=root, hint="check bucket and prefix")
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError("there is nothing here", file=root, hint="check bucket and prefix") from None
    except Exception as error:  # every library of a store has its own
        raise DataError(f"cannot be listed: {error}", file=root, hint=read_error(root, error).hint) from error
    files, hidden, prefix = list[Listed](), set[str](), top.rstrip("/") + "/"
    for path, details in found.items():
        below = path.removeprefix(prefix)
        if not path.startswith(prefix) or details.get("type", "file") != "file" or path.endswith("/"):
            continue  # a folder, as a store makes them for its page
        if (found_hidden := _HIDDEN_PART.match(below)) is not None:
            hidden.add(found_hidden[0])  # of a folder once, as on disk
        else:
            files.append(_object(below, f"{root.rstrip('/')}/{below}", details))
    left_out = LeftOut()
    for path in hidden:
        left_out.add(HIDDEN, path)
    return Listing(files, left_out)


def _object(path: str, uri: str, details: dict[str, Any]) -> Listed:
    modified = details.get("LastModified") or details.get("mtime") or 0
    seconds = modified.timestamp() if hasattr(modified, "timestamp") else float(modified)
    return Listed(path, uri, int(details["size"]), seconds, tag=tag_of(details))


def tag_of(details: dict[str, Any]) -> str:
    """The ETag in what a store says of an object; empty where it says none."""
    return str(details.get("ETag") or details.get("etag") or "").strip('"')
