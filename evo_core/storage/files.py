"""The verbs by which every part of Evo reads and writes, wherever a location lies: open, list, write, create, delete,
link or copy.

They work on this machine and in S3. What cannot be read is a `DataError` in the user's words; what cannot be written is
an `OSError`, of the file system or in the same form of a store, which each caller explains in its own (a full disk
means another thing to a checkpoint than to a report). A file in a store is seen whole or not at all, as on disk; a
folder there is its objects, which appear one by one. What `durable` asks for, a store always does.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from evo_core.errors import DataError, UserError
from evo_core.pulse import beat
from evo_core.storage import atomic, local
from evo_core.storage.listed import LeaveOut, Listed
from evo_core.storage.location import Location, file_name, is_remote, local_path, path_to_write
from evo_core.storage.s3 import objects, transfer, trouble
from evo_core.storage.s3.place import place_of

_CHUNK = 8 << 20


def open_file(location: Location) -> BinaryIO:
    """Open a file for reading bytes; the result can seek.

    Raises:
        DataError: it is missing or not readable, or what reads its store is not installed.
    """
    with _reading(location):
        return objects.open_object(place_of(str(location))) if is_remote(location) else local_path(location).open("rb")


def file_size(location: Location) -> int:
    """Size of a file in bytes.

    Raises:
        DataError: as `open_file`.
    """
    with _reading(location):
        return (
            objects.info(place_of(str(location))).size if is_remote(location) else local_path(location).stat().st_size
        )


def file_info(location: Location) -> Listed:
    """What a listing would say of one file, asked now.

    Raises:
        DataError: as `open_file`.
    """
    with _reading(location):
        return objects.info(place_of(str(location))) if is_remote(location) else local.info(local_path(location))


def file_exists(location: Location) -> bool:
    """Whether there is a file (not a folder).

    Raises:
        DataError: the store cannot be asked.
    """
    with _reading(location):
        return objects.is_object(place_of(str(location))) if is_remote(location) else local_path(location).is_file()


def read_if_there(location: Location) -> bytes | None:
    """The content of a small file; None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with _reading(location):
            return objects.read(place_of(str(location))) if is_remote(location) else local_path(location).read_bytes()
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise


def list_folders(root: Location) -> list[str]:
    """Names of the folders right in a folder, in no order; none where it is not there.

    Raises:
        DataError: it cannot be read.
    """
    with _reading(root):
        if is_remote(root):
            return objects.folders(place_of(str(root)))
        path = local_path(root)
        return [each.name for each in path.iterdir() if each.is_dir()] if path.is_dir() else []


def file_sizes(folder: Location) -> dict[str, int]:
    """Bytes of every file at any depth below a folder, hidden ones too, by path with forward slashes.

    Raises:
        DataError: it cannot be read.
    """
    with _reading(folder):
        if is_remote(folder):
            return {file.path: file.size for file in objects.every_object(place_of(str(folder)))}
        path = local_path(folder)
        return {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*") if file.is_file()}


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
        OSError: it cannot be written; what was there is still there.
    """
    if is_remote(location):
        transfer.put(place_of(str(location)), atomic.as_bytes(content))
    else:
        atomic.write(path_to_write(location), content, durable=durable)


@contextmanager
def replacing(location: Location, *, durable: bool = True) -> Iterator[Path]:
    """The same for a file that something else writes: gives a draft, which gets its name when the block ends well.

    The draft of one in a store is a temporary file of this machine (``TMPDIR``).

    Raises:
        OSError: as `write_file`.
    """
    if not is_remote(location):
        with atomic.replacing(path_to_write(location), durable=durable) as draft:
            yield draft
        return
    with tempfile.TemporaryDirectory(prefix="evo-") as folder:
        yield (draft := Path(folder) / file_name(location))
        transfer.upload(place_of(str(location)), draft)


@contextmanager
def new_folder(location: Location, *, durable: bool = True, replace: bool = False) -> Iterator[Path]:
    """The same for a folder with all that is in it.

    In a store its files appear in the order of their paths; where one cannot be written, those before it go again.

    Args:
        replace: remove a folder of that name; without it only an empty one may be there.

    Raises:
        OSError: as `write_file`; also where something is there that is not replaced.
    """
    if not is_remote(location):
        with atomic.new_folder(path_to_write(location), durable=durable, replace=replace) as draft:
            yield draft
        return
    place = place_of(str(location))
    if not replace and not objects.is_empty(place):
        raise OSError(errno.ENOTEMPTY, "something is there already", str(location))
    with tempfile.TemporaryDirectory(prefix="evo-") as scratch:
        draft = Path(scratch) / "folder"
        draft.mkdir()
        yield draft
        if replace:
            objects.delete(place)
        try:
            link_tree(draft, str(location))
        except BaseException:
            objects.delete(place)
            raise


def create_file(location: Location, content: str | bytes, *, durable: bool = True) -> bool:
    """Write a file only if nothing is there; of several that do so at once one wins. Returns whether this call did.

    Raises:
        OSError: as `write_file`.
    """
    if is_remote(location):
        return transfer.put(place_of(str(location)), atomic.as_bytes(content), if_absent=True)
    return atomic.create(path_to_write(location), content, durable=durable)


def link_if_absent(source: Location, target: Location) -> bool:
    """`create_file` with the content of a local file that is there: on disk a second name of it. Durable.

    Raises:
        LocationError: the source is in a store.
        OSError: as `write_file`.
    """
    if is_remote(target):
        return transfer.upload(place_of(str(target)), _here(source), if_absent=True)
    return atomic.link_if_absent(path_to_write(source), path_to_write(target))


def delete(location: Location) -> None:
    """Remove a file, or a folder with all that is in it; nothing happens where there is nothing.

    Raises:
        OSError: a file cannot be removed. Of a folder as much goes as can.
    """
    if is_remote(location):
        objects.delete(place_of(str(location)))
    else:
        local.delete(path_to_write(location))


def delete_folder(folder: Location, *, last: str) -> None:
    """`delete` for a folder, with what killed processes had begun to upload into it.

    Args:
        last: name of the file in it that says whose it is: in a store it goes when all others are gone.

    Raises:
        OSError: as `delete`.
    """
    if not is_remote(folder):
        delete(folder)
        return
    place = place_of(str(folder))
    with suppress(OSError):  # a store without the request, or no right to it: nobody sees what is left
        objects.abort_uploads(place)
    objects.delete(place, last=last)


def try_writing(folder: Location) -> None:
    """Write a little into a folder, which is there unless it is in a store, and take it away again.

    Raises:
        OSError: it cannot be written.
    """
    if is_remote(folder):
        objects.try_writing(place_of(str(folder)))
    else:
        local.try_writing(path_to_write(folder))


def link_or_copy(source: Location, target: Location) -> None:
    """Have a file at a second location, without a second copy of its bytes where the file system can.

    Raises:
        DataError: the source is in a store, and cannot be read.
        OSError: it can be neither linked nor copied.
    """
    if is_remote(source) or is_remote(target):
        copy_file(source, target)
    else:
        local.link_or_copy(_here(source), path_to_write(target))


def copy_file(source: Location, target: Location) -> None:
    """Copy a file's content: unlike a link it keeps what was copied, whatever is written into the source. Folders that
    lead to the target are made; on disk a kill may leave half of it.

    Raises:
        DataError: the source is in a store, and cannot be read.
        OSError: it cannot be copied.
    """
    if not is_remote(source):
        if is_remote(target):
            transfer.upload(place_of(str(target)), _here(source))
        else:
            local.copy_file(_here(source), path_to_write(target))
        return
    if is_remote(target):
        with replacing(target) as draft:
            _fetch(source, draft)
        return
    path = path_to_write(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    _fetch(source, path)


def link_tree(source: Path, target: Location) -> None:
    """`link_or_copy` for every file below a folder, in the order of their paths."""
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        link_or_copy(path, below(target, path.relative_to(source).as_posix()))
        beat()


def below(folder: Location, path: str) -> Location:
    """The location of a path, with forward slashes, below a folder."""
    return f"{folder.rstrip('/')}/{path}" if isinstance(folder, str) else folder / path


def read_error(location: Location, error: BaseException) -> DataError:
    """What happened when a file was opened or read, in the user's terms."""
    if isinstance(error, IsADirectoryError) or (isinstance(error, OSError) and error.errno == errno.EISDIR):
        return DataError("this is a folder, not a file", file=location)
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    if is_remote(location) and isinstance(error, OSError):
        said = isinstance(error, FileNotFoundError | PermissionError) or error.errno == errno.ESTALE
        return DataError(what if said else f"it cannot be read ({what})", file=location, hint=trouble.hint_for(error))
    if isinstance(error, FileNotFoundError):
        return DataError("there is no such file", file=location)
    if isinstance(error, PermissionError):
        return DataError("it may not be read from here", file=location, hint="check who may read it")
    return DataError(f"it cannot be read ({what})", file=location)


def write_hint(location: Location, error: OSError) -> str | None:
    """What a user may do about an error in writing, where its own text does not say it."""
    return trouble.hint_for(error) if is_remote(location) else None


@contextmanager
def _reading(location: Location) -> Iterator[None]:
    """Put whatever the libraries of a store raise into the user's terms."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise read_error(location, error) from error


def _fetch(source: Location, path: Path) -> None:
    """Copy the content of a file in a store."""
    with open_file(source) as file, path.open("wb") as copy:
        for chunk in iter(lambda: _chunk(file, source), b""):
            copy.write(chunk)


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
    with _reading(root):
        try:
            return objects.list_objects(place_of(root), leave_out)
        except FileNotFoundError as error:
            what = error.strerror or "there is nothing here"
            raise DataError(what, file=root, hint="check bucket and prefix") from None
