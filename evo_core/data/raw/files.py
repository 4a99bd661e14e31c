"""Raw files, wherever they are: a local path, or a URI that fsspec knows (``s3://bucket/key``, ``memory://a``, …).

Local files are opened by Python alone. Credentials of an object store come from its usual environment (``AWS_*``);
``S3_ENDPOINT_URL`` or ``AWS_ENDPOINT_URL`` names another server than Amazon's.
"""

from __future__ import annotations

import errno
import io
import os
import re
from typing import Any, BinaryIO, cast

from evo_core.errors import DataError
from evo_core.storage.location import Location, local_path

# Less than the 50 MB that s3fs fetches at once by default: every process holds two.
_BLOCK_BYTES = 8 << 20

_URI = re.compile(r"(?:boto3:)?[a-z][a-z0-9+.-]*://")
_BOTO3 = re.compile(r"boto3:s3://([^./]+)\.([^/]+)(.*)", re.DOTALL)


def is_uri(location: Location) -> bool:
    """Whether a location is a URI of another store rather than a local path (``file://`` and ``local:`` are local)."""
    return isinstance(location, str) and _URI.match(location) is not None and not location.startswith("file:")


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


def filesystem(uri: str) -> tuple[Any, str]:
    """fsspec's file system for a URI, and the path in it.

    Raises:
        DataError: fsspec, or what it needs for this kind of store, is not installed, or it knows no such kind.
    """
    try:
        import fsspec

        endpoint = os.environ.get("S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
        if (named := _BOTO3.fullmatch(uri)) is not None:
            uri, endpoint = f"s3://{named[1]}{named[3]}", f"http://{named[2]}"
        uri = uri.removeprefix("boto3:")
        options = {"endpoint_url": endpoint} if endpoint and uri.startswith(("s3://", "s3a://")) else {}
        # Not url_to_fs, which takes a key with :: in it for a chain of stores.
        fs = fsspec.filesystem(uri.partition("://")[0], **options)
        return fs, cast(str, fs._strip_protocol(uri))
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
