"""Raw files, wherever they are: a local path, or a URI that fsspec knows (``s3://bucket/key``, ``memory://a``, …).

Local files are opened by Python alone. Credentials of an object store come from its usual environment (``AWS_*``);
``S3_ENDPOINT_URL`` or ``AWS_ENDPOINT_URL`` names another server than Amazon's.
"""

from __future__ import annotations

import errno
import glob
import io
import os
from pathlib import Path
from typing import Any, BinaryIO, cast

from evo_core.errors import DataError

Location = str | Path
"""A path, or a URI. A URI stays a string: `Path` would take ``//`` for ``/``."""

# Less than the 50 MB that s3fs fetches at once by default: every process holds two.
_BLOCK_BYTES = 8 << 20


def is_uri(location: Location) -> bool:
    """Whether a location is a URI of another store rather than a local path (``file://`` and ``local:`` are local)."""
    return isinstance(location, str) and "://" in location and not location.startswith("file://")


def local_path(location: Location) -> Path:
    """The path of a location that is no URI."""
    return Path(str(location).removeprefix("file://").removeprefix("local:"))


def file_name(location: Location) -> str:
    """The last part of a location."""
    return str(location).rstrip("/").rpartition("/")[2]


def open_file(location: Location) -> BinaryIO:
    """Open a file for reading bytes; the result can seek.

    Raises:
        DataError: it is missing or not readable, or what reads its store is not installed.
    """
    try:
        if is_uri(location):
            fs, path = filesystem(str(location))
            return io.BufferedReader(cast(Any, fs.open(path, "rb", block_size=_BLOCK_BYTES)), buffer_size=1 << 20)
        return local_path(location).open("rb")
    except DataError:
        raise
    except Exception as error:  # every library of a store has its own
        raise read_error(location, error) from error


def file_size(location: Location) -> int:
    """Size of a file in bytes.

    Raises:
        DataError: as `open_file`.
    """
    try:
        if is_uri(location):
            fs, path = filesystem(str(location))
            return int(fs.size(path))
        return local_path(location).stat().st_size
    except DataError:
        raise
    except Exception as error:
        raise read_error(location, error) from error


def file_exists(location: Location) -> bool:
    """Whether there is a file (not a folder).

    Raises:
        DataError: the store cannot be asked.
    """
    if not is_uri(location):
        return local_path(location).is_file()
    fs, path = filesystem(str(location))
    try:
        return bool(fs.isfile(path))
    except Exception as error:
        raise read_error(location, error) from error


def find_files(location: str) -> list[str]:
    """The files that a path or URI means: itself, those below it if it is a folder, or those that match a pattern.

    Files of a folder or pattern are sorted, those with hidden names (``.x``) left out.

    Raises:
        DataError: there is none, or the store cannot be asked.
    """
    if file_exists(location):
        return [location if is_uri(location) else str(local_path(location))]
    try:
        found = _find_in_store(location) if is_uri(location) else _find_here(str(local_path(location)))
    except DataError:
        raise
    except Exception as error:
        raise read_error(location, error) from error
    if not found:
        raise DataError("there is no such file, no file in such a folder and none that matches", file=location)
    return found


def _find_here(path: str) -> list[str]:
    if Path(path).is_dir():
        below = (p for p in Path(path).rglob("*") if p.is_file())
        return sorted(str(p) for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts))
    return sorted(p for p in glob.glob(path, recursive=True) if Path(p).is_file())  # noqa: PTH207 (may be absolute)


def _find_in_store(uri: str) -> list[str]:
    fs, path = filesystem(uri)
    if any(letter in path for letter in "*?["):
        found = [p for p in fs.glob(path) if fs.isfile(p)]
    else:
        found = fs.find(path)
    return sorted(fs.unstrip_protocol(p) for p in found if not file_name(p).startswith("."))


def filesystem(uri: str) -> tuple[Any, str]:
    """fsspec's file system for a URI, and the path in it.

    Raises:
        DataError: fsspec, or what it needs for this kind of store, is not installed, or it knows no such kind.
    """
    try:
        from fsspec.core import url_to_fs

        endpoint = os.environ.get("S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
        options = {"endpoint_url": endpoint} if endpoint and uri.startswith(("s3://", "s3a://")) else {}
        return cast(tuple[Any, str], url_to_fs(uri, **options))
    except ImportError as error:
        raise DataError(
            f"the package {error.name or 'that reads it'} is not installed", file=uri, hint="pip install fsspec s3fs"
        ) from None
    except Exception as error:
        raise DataError(f"this store cannot be reached ({error})", file=uri, hint=_CREDENTIALS) from error


def read_error(location: Location, error: BaseException) -> DataError:
    """What happened when a file was opened or read, in the user's terms."""
    if isinstance(error, FileNotFoundError):
        return DataError("there is no such file", file=location)
    if type(error).__name__ == "FileExpired":  # s3fs reads the version that it saw in a listing, or none
        return DataError("this raw file has changed since it was listed", file=location, hint="run again")
    if isinstance(error, IsADirectoryError) or (isinstance(error, OSError) and error.errno == errno.EISDIR):
        return DataError("this is a folder, not a file", file=location)
    hint = _CREDENTIALS if is_uri(location) else "check who may read it"
    if isinstance(error, PermissionError):
        return DataError("it may not be read from here", file=location, hint=hint)
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return DataError(f"it cannot be read ({what})", file=location, hint=hint if is_uri(location) else None)


_CREDENTIALS = (
    "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the server from S3_ENDPOINT_URL or "
    "AWS_ENDPOINT_URL"
)
