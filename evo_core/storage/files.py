"""The verbs by which every part of Evo reads and writes, wherever a location lies: open, list, write, create, delete,
link or copy.

Reading works on this machine and in S3, writing on this machine alone: in a store every writing verb raises the one
error that says so (`path_to_write`). What cannot be read is a `DataError` in the user's words; what cannot be written
is the `OSError` of the file system, which each caller explains in its own (a full disk means another thing to a
checkpoint than to a report).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from evo_core.errors import DataError, UserError
from evo_core.storage import atomic, local, s3
from evo_core.storage.listed import LeaveOut, Listed
from evo_core.storage.location import Location, is_remote, local_path, path_to_write

_CHUNK = 8 << 20


def open_file(location: Location) -> BinaryIO:
    """Open a file for reading bytes; the result can seek.

    Raises:
        DataError: it is missing or not readable, or what reads its store is not installed.
    """
    with _reading(location):
        return s3.open_file(str(location)) if is_remote(location) else local_path(location).open("rb")


def file_size(location: Location) -> int:
    """Size of a file in bytes.

    Raises:
        DataError: as `open_file`.
    """
    with _reading(location):
        return s3.file_size(str(location)) if is_remote(location) else local_path(location).stat().st_size


def file_info(location: Location) -> Listed:
    """What a listing would say of one file, asked now.

    Raises:
        DataError: as `open_file`.
    """
    with _reading(location):
        return s3.info(str(location)) if is_remote(location) else local.info(local_path(location))


def file_exists(location: Location) -> bool:
    """Whether there is a file (not a folder).

    Raises:
        DataError: the store cannot be asked.
    """
    with _reading(location):
        return s3.is_file(str(location)) if is_remote(location) else local_path(location).is_file()


def list_files(root: Location, leave_out: LeaveOut, *, depth: int | None = None) -> list[Listed]:
    """Every file at any depth below a folder, in the order of their paths; the same files in a store are listed alike.

    Links are followed once: a folder is read under one name, its own where it lies below the root, else the first of
    its links. Hidden names, those below the root with a part that begins with a dot (drafts are), are left out.

    Args:
        leave_out: told what is passed over, and why.
        depth: the most parts that a file's path may have below the root; None for any number. A store is not asked
            less for it.

    Raises:
        DataError: there is no such folder, or it cannot be read.
    """
    files = _objects(str(root), leave_out) if is_remote(root) else _on_disk(local_path(root), depth, leave_out)
    return sorted(files, key=lambda file: file.path)


def write_file(location: Location, content: str | bytes, *, durable: bool = True) -> None:
    """Put a file at a location in one step, whatever was there; folders that lead to it are made.

    Args:
        content: text is written as UTF-8.
        durable: see `evo_core.storage.atomic`.

    Raises:
        LocationError: it is in a store.
        OSError: it cannot be written; what was there is still there.
    """
    atomic.write(path_to_write(location), content, durable=durable)


def replacing(location: Location, *, durable: bool = True) -> AbstractContextManager[Path]:
    """The same for a file that something else writes: gives a draft, which gets its name when the block ends well.

    Raises:
        LocationError, OSError: as `write_file`.
    """
    return atomic.replacing(path_to_write(location), durable=durable)


def new_folder(location: Location, *, durable: bool = True, replace: bool = False) -> AbstractContextManager[Path]:
    """The same for a folder with all that is in it.

    Args:
        replace: remove a folder of that name; without it only an empty one may be there.

    Raises:
        LocationError, OSError: as `write_file`; also where something is there that is not replaced.
    """
    return atomic.new_folder(path_to_write(location), durable=durable, replace=replace)


def create_file(location: Location, content: str | bytes, *, durable: bool = True) -> bool:
    """Write a file only if nothing is there; of several that do so at once one wins. Returns whether this call did.

    Raises:
        LocationError, OSError: as `write_file`.
    """
    return atomic.create(path_to_write(location), content, durable=durable)


def link_if_absent(source: Location, target: Location) -> bool:
    """`create_file` with the content of a file that is there, as a second name of it; durable.

    Raises:
        LocationError, OSError: as `write_file`.
    """
    return atomic.link_if_absent(path_to_write(source), path_to_write(target))


def delete(location: Location) -> None:
    """Remove a file, or a folder with all that is in it; nothing happens where there is nothing.

    Raises:
        LocationError: it is in a store.
        OSError: a file cannot be removed. Of a folder as much goes as can.
    """
    local.delete(path_to_write(location))


def link_or_copy(source: Location, target: Location) -> None:
    """Have a file at a second location, without a second copy of its bytes where the file system can.

    Raises:
        LocationError: one of them is in a store.
        OSError: it can be neither linked nor copied.
    """
    local.link_or_copy(_here(source), path_to_write(target))


def copy_file(source: Location, target: Location) -> None:
    """Copy a file's content: unlike a link it keeps what was copied, whatever is written into the source. Folders that
    lead to the target are made; a kill may leave half of it.

    Raises:
        LocationError: the target is in a store.
        DataError: the source is in one, and cannot be read.
        OSError: it cannot be copied.
    """
    if not is_remote(source):
        local.copy_file(_here(source), path_to_write(target))
        return
    path = path_to_write(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_file(source) as file, path.open("wb") as copy:
        for chunk in iter(lambda: _chunk(file, source), b""):
            copy.write(chunk)


def link_tree(source: Path, target: Path) -> None:
    """The same for every file below a folder."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        link_or_copy(path, target / path.relative_to(source))


def read_error(location: Location, error: BaseException) -> DataError:
    """What happened when a file was opened or read, in the user's terms."""
    if isinstance(error, FileNotFoundError):
        return DataError("there is no such file", file=location)
    if type(error).__name__ == "FileExpired":  # s3fs reads the version that it saw in a listing, or none
        return DataError("this raw file has changed since it was listed", file=location, hint="run again")
    if isinstance(error, IsADirectoryError) or (isinstance(error, OSError) and error.errno == errno.EISDIR):
        return DataError("this is a folder, not a file", file=location)
    hint = s3.CREDENTIALS if is_remote(location) else "check who may read it"
    if isinstance(error, PermissionError):
        return DataError("it may not be read from here", file=location, hint=hint)
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return DataError(f"it cannot be read ({what})", file=location, hint=hint if is_remote(location) else None)


@contextmanager
def _reading(location: Location) -> Iterator[None]:
    """Put whatever the libraries of a store raise into the user's terms."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise read_error(location, error) from error


def _chunk(file: BinaryIO, location: Location) -> bytes:
    with _reading(location):
        return file.read(_CHUNK)


def _here(source: Location) -> Path:
    return source if isinstance(source, Path) else local_path(source)


def _on_disk(root: Path, depth: int | None, leave_out: LeaveOut) -> list[Listed]:
    if not root.is_dir():
        raise DataError("this is no folder" if root.exists() else "there is no such folder", file=root)
    with _reading(root):
        return local.list_files(root, depth, leave_out)


def _objects(root: str, leave_out: LeaveOut) -> list[Listed]:
    try:
        return s3.list_files(root, leave_out)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError("there is nothing here", file=root, hint="check bucket and prefix") from None
    except Exception as error:
        raise DataError(f"cannot be listed: {error}", file=root, hint=read_error(root, error).hint) from error
