"""Files of this machine: listed, deleted, linked or copied. How they are written is in `evo_core.storage.atomic`."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from evo_core.storage.atomic import create, draft_name, sync
from evo_core.storage.listed import AGAIN, DANGLING, HIDDEN, SPECIAL, UNREADABLE, LeaveOut, Listed


def info(path: Path) -> Listed:
    """What there is to know of one file.

    Raises:
        OSError: it is not there.
    """
    return _listed(path.name, str(path), path.stat())


def list_files(root: Path, depth: int | None, leave_out: LeaveOut) -> list[Listed]:
    """Every file below a folder, in no order; see `evo_core.storage.files.list_files`.

    Raises:
        OSError: there is no such folder, or it cannot be read.
    """
    return _Walk(root, depth, leave_out).files()


def delete(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, which nobody sees half removed; nothing happens where there is
    nothing.

    Raises:
        OSError: a file cannot be removed. Of a folder as much goes as can.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    gone = draft_name(path)
    try:
        path.rename(gone)
    except OSError:  # what may be emptied cannot always be renamed
        gone = path
    shutil.rmtree(gone, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where it lies on another file system. Takes the place of what is there.

    Raises:
        OSError: it can be neither linked nor copied.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.absolute() == target.absolute():
        return
    if not target.is_symlink() and target.exists() and source.samefile(target):
        return
    if source.exists():
        target.unlink(missing_ok=True)  # it may be a link of another file, which would change if it were written into
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content, over what is there: a link would share what is written to either later.

    Raises:
        OSError: it cannot be copied.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def try_writing(folder: Path, size: int = 1) -> None:
    """Write a little into a folder that is there, and take it away again.

    Raises:
        OSError: the file system refuses.
    """
    probe = draft_name(folder / "probe")
    try:
        probe.write_bytes(bytes(size))
        sync(probe)  # some file systems find out only here that there is no room
    finally:
        probe.unlink(missing_ok=True)


def try_creating(folder: Path) -> None:
    """The same for files that are made only where there is none (`evo_core.storage.atomic.create`).

    Raises:
        OSError: the file system refuses, or has no hard links.
    """
    probe = draft_name(folder / "probe")
    try:
        create(probe, b"", durable=False)
    finally:
        probe.unlink(missing_ok=True)


class _Walk:
    """One way through a folder on disk: first all that lies below it, then what its links lead to, in their order."""

    def __init__(self, root: Path, depth: int | None, leave_out: LeaveOut) -> None:
        self._root, self._depth, self._leave_out = str(root).rstrip("/"), depth, leave_out
        self._seen: set[tuple[int, int]] = set()
        self._files: list[Listed] = []
        self._links = [""]

    def files(self) -> list[Listed]:
        while self._links:
            self._links.sort(reverse=True)
            folders = [self._links.pop()]
            while folders:
                folders += self._in(folders.pop())
        return self._files

    def _in(self, folder: str) -> Iterator[str]:
        """Take the files of a folder, remember its links to folders, and give its own folders."""
        path = f"{self._root}/{folder}"
        try:
            status = Path(path).stat()
            if (status.st_dev, status.st_ino) in self._seen:
                self._leave_out(AGAIN, folder.rstrip("/"))
                return
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as scan:
                entries = list(scan)
        except OSError:
            if not folder:
                raise
            self._leave_out(UNREADABLE, folder.rstrip("/"))
            return
        for entry in entries:
            below = f"{folder}{entry.name}"
            if entry.name.startswith("."):
                self._leave_out(HIDDEN, below)
                continue
            try:
                status = entry.stat()
            except OSError:
                if entry.is_symlink():
                    self._leave_out(DANGLING, below)
                continue  # another is gone since the folder was read
            if stat.S_ISREG(status.st_mode):
                self._files.append(_listed(below, f"{self._root}/{below}", status))
            elif not stat.S_ISDIR(status.st_mode):
                self._leave_out(SPECIAL, below)
            elif self._depth is not None and below.count("/") + 1 >= self._depth:
                continue
            elif entry.is_symlink():
                self._links.append(f"{below}/")
            else:
                yield f"{below}/"


def _listed(path: str, uri: str, status: os.stat_result) -> Listed:
    return Listed(path, uri, status.st_size, status.st_mtime, status.st_mtime_ns)
