"""Writing on a file system so that a reader sees all of it or nothing, whatever dies in between.

A file or a folder is written as a *draft* beside its place and becomes visible by one rename. What must replace nothing
becomes visible by one hard link, the one create-if-absent that is atomic with its content on POSIX file systems, NFS
included. A draft is hidden and named by its process, ``.NAME.PROCESS.N.tmp``: where the block that writes it fails it
is removed, and what a killed process left goes with a next write into that folder (`clear_drafts`).

When bytes are brought to the disk is said here and nowhere else:

- ``durable`` (the default): the draft is synced before it gets its name, and the folder after it, so that a power cut
  leaves the old or the new too, and never an empty file with the right name. For all that somebody relies on: commits,
  claims and refs of a store, checkpoints, token files, converted weights, configurations, results.
- ``durable=False``: a kill leaves the old or the new, a power cut may leave an empty file. For what can be made again
  or is out of date in a moment: caches, an index in memory, parts of a file that is being put together, progress.
- What is merely linked or copied into an attempt is synced when the attempt is sealed (`tasks.store.commit`).

A file system that cannot sync a folder (some of CIFS and FUSE) says so, and is taken at its word: there a power cut may
take a name that was given just before. A device or a pipe is written into, for nothing could take its place.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from evo_core.pulse import beat
from evo_core.storage.identity import left_by_dead, mark

UNNAMED = getattr(os, "O_TMPFILE", os.O_DIRECTORY)
"""Opens a file without a name in a folder; where the system has none, opening for writing fails."""

_OLD_DRAFT = 86400.0
"""Seconds after which a draft counts as left behind where its process cannot be asked for (another machine)."""

_REST = 1e-4
"""Seconds a file in a folder for which a process that writes there does not look again for drafts of the dead: looking
at each of ten thousand that are added would cost more than writing them. Of a small folder it is no time at all."""

_REMEMBERED = 1000
"""Folders of which a process knows when it looked there."""

_NAME_BYTES = 200
"""Of the file's own name in a draft's: a name may have 255 bytes."""

# Older versions had drafts of other endings.
_DRAFT = re.compile(r"\..*\.(?P<mark>\d+-\d+-[0-9a-f]{8})\.[0-9a-f]+\.(tmp|parts)(\.meta)?", re.DOTALL)

_DEVICES = Path("/dev")

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""What a file system says that has no way to sync a folder; any other error is that syncing failed."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What a file system says that has no hard links."""

_number = itertools.count()
_look_again: dict[Path, float] = {}


def write(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Put a file in the place of `path`, whatever was there.

    Args:
        content: text is written as UTF-8; what cannot be (a file's name that is not UTF-8) as JSON's ``\\udcff``.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    with replacing(path, durable=durable) as draft:
        draft.write_bytes(as_bytes(content))


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A draft that takes the place of the file `path` when the block ends well, and is gone when it does not.

    Where `path` is a device or a pipe (``/dev/null``, ``/dev/stdout``) it is the draft itself.

    Raises:
        OSError: as `write`.
    """
    if _is_channel(path):
        yield path
        return
    draft = new_draft(path)
    try:
        yield draft
        publish([(draft, path)], durable=durable)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, durable: bool = True, replace: bool = False) -> Iterator[Path]:
    """A draft that becomes the folder `path` when the block ends well, and is gone when it does not.

    Args:
        replace: remove a folder of that name first. A reader may see neither for a moment. Without it a link to an
            empty folder stays, and what it leads to is replaced.

    Raises:
        OSError: it cannot be written, or something other than an empty folder is there (`filename2` is set then). Of a
            folder on which a file system is mounted that is said before there is a draft.
    """
    path = path if replace else path.resolve()  # no folder can take the place of a link
    if path.is_mount():
        raise OSError(errno.EBUSY, "a file system is mounted there: name a folder in it", str(path))
    draft, old = new_draft(path), draft_name(path)
    draft.mkdir()
    try:
        yield draft
        if durable:
            sync_tree(draft)
        if replace and path.is_dir():
            path.rename(old)
        try:
            draft.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)  # nothing took its place: it stays
            raise
        if durable:
            sync(path.parent)
    finally:
        for left in (draft, old):
            shutil.rmtree(left, ignore_errors=True)


def new_draft(path: Path) -> Path:
    """`draft_name` in a folder that is there and, looked at now and then, free of what the dead left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if time.monotonic() >= _look_again.get(path.parent, 0.0):
        if len(_look_again) >= _REMEMBERED:
            _look_again.clear()
        _look_again[path.parent] = time.monotonic() + _REST * clear_drafts(path.parent)
    return draft_name(path)


def draft_name(path: Path) -> Path:
    """A name beside `path`, of this process and never given before, for what shall take its place."""
    name = os.fsencode(path.name)[:_NAME_BYTES].decode(errors="ignore")  # some file systems take no half a character
    return path.with_name(f".{name}.{mark()}.{next(_number)}.tmp")


def publish(drafts: Sequence[tuple[Path, Path]], *, stale: Iterable[Path] = (), durable: bool = True) -> None:
    """Give drafts their names, one after the other: whoever sees the last sees them all.

    Args:
        drafts: each with its name. All are on the disk before the first is visible.
        stale: what goes before that, since it would say something else of the new files.
    """
    if durable:
        for draft, _ in drafts:
            sync(draft)
    for path in stale:
        path.unlink(missing_ok=True)
    for draft, path in drafts:
        draft.replace(path)
    if durable:
        for folder in dict.fromkeys(path.parent for _, path in drafts):
            sync(folder)


def create(path: Path, content: str | bytes, *, durable: bool = True) -> bool:
    """Write a file only if nothing is there; returns whether this call wrote it.

    Where the file system has files without a name, the draft is one: a kill leaves nothing of it.

    Raises:
        OSError: it cannot be written.
    """
    draft = new_draft(path)
    try:
        return _link_unnamed(path, as_bytes(content), durable)
    except OSError:
        try:
            draft.write_bytes(as_bytes(content))
            if durable:
                sync(draft)
            return link_if_absent(draft, path, durable=durable)
        finally:
            draft.unlink(missing_ok=True)


def link_if_absent(source: Path, target: Path, *, durable: bool = True) -> bool:
    """Hard-link `source` to `target`; False when something else is there already.

    Raises:
        OSError: it cannot be linked; of a file system without links its text says so.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        # NFS may do what was asked, lose its answer, and refuse when it is asked again
        try:
            return source.samefile(target)
        except FileNotFoundError:
            return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise OSError(error.errno, "no hard link can be made on this file system", str(target)) from error
    if durable:
        sync(target.parent)
    return True


def sync(path: Path) -> None:
    """Bring to the disk what was written to a file, or the names (renames, links) in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Bring a folder and all below it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            sync(path)
            beat()


def time_of(folder: Path) -> int:
    """Now, ns, as the file system's clock has it: the clocks of two machines may differ, this one is common to both."""
    try:
        probe = os.open(folder, UNNAMED | os.O_WRONLY, 0o600)
        try:
            return os.fstat(probe).st_mtime_ns
        finally:
            os.close(probe)
    except OSError:
        pass
    try:
        draft = new_draft(folder / "now")
        try:
            draft.write_bytes(b"")
            return draft.stat().st_mtime_ns
        finally:
            draft.unlink(missing_ok=True)
    except OSError:
        return time.time_ns()  # a folder that cannot be written; nothing is taken in it either


def clear_drafts(folder: Path) -> int:
    """Remove the drafts that processes left in a folder which died while they wrote; returns how many files and folders
    were looked at."""
    looked_at = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            looked_at += 1
            match = _DRAFT.fullmatch(entry.name)
            if match is None or not _is_left_behind(Path(entry.path), match["mark"]):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):
                    Path(entry.path).unlink()
    return looked_at


def _is_channel(path: Path) -> bool:
    """Whether a path is one that bytes go through, and not a file or a folder (or nothing yet)."""
    if path.absolute().parent == _DEVICES:  # /dev/stdout is a link, to a file if it was redirected
        return path.exists()
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _is_left_behind(draft: Path, mark: str) -> bool:
    dead = left_by_dead(mark)
    if dead is not None:
        return dead
    try:
        newest = max(path.lstat().st_mtime for path in [draft, *draft.rglob("*")])
    except OSError:
        return False
    return time.time() - newest > _OLD_DRAFT


def _link_unnamed(path: Path, content: bytes, durable: bool) -> bool:
    descriptor = os.open(path.parent, UNNAMED | os.O_WRONLY, 0o666)
    try:
        with open(descriptor, "wb", closefd=False) as out:
            out.write(content)
        if durable:
            os.fsync(descriptor)
        # a folder's descriptor makes Python call linkat, which alone can name what has no name yet
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
    except FileExistsError:
        return False
    finally:
        os.close(descriptor)
    if durable:
        sync(path.parent)
    return True


def as_bytes(content: str | bytes) -> bytes:
    """What `write` writes of it."""
    return content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
