"""Objects of an S3 store, read through fsspec and s3fs, which are imported when one is asked for.

Credentials come from the store's usual environment (``AWS_*``); ``S3_ENDPOINT_URL`` or ``AWS_ENDPOINT_URL`` names
another server than Amazon's, and so does the location itself in ``boto3:s3://bucket.endpoint/key``.
"""

from __future__ import annotations

import io
import os
import re
from typing import Any, BinaryIO, cast

from evo_core.errors import DataError
from evo_core.storage.listed import HIDDEN, LeaveOut, Listed
from evo_core.storage.location import file_name

CREDENTIALS = (
    "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the server from S3_ENDPOINT_URL or "
    "AWS_ENDPOINT_URL"
)

# Less than the 50 MB that s3fs fetches at once by default: every process holds two.
_BLOCK_BYTES = 8 << 20

_BOTO3 = re.compile(r"boto3:s3://([^./]+)\.([^/]+)(.*)", re.DOTALL)
_HIDDEN_PART = re.compile(r"(?:[^/]*/)*?\.[^/]*")

# Every function raises what the libraries raise, which is of many kinds; `evo_core.storage.files` puts it into words.


def open_file(uri: str) -> BinaryIO:
    """Open an object for reading; the result can seek."""
    fs, path = _filesystem(uri)
    return io.BufferedReader(cast(Any, fs.open(path, "rb", block_size=_BLOCK_BYTES)), buffer_size=1 << 20)


def is_file(uri: str) -> bool:
    """Whether there is such an object, and not only some below it."""
    fs, path = _filesystem(uri)
    return bool(fs.isfile(path))


def file_size(uri: str) -> int:
    """Bytes of an object, from a listing that this process made where there was one."""
    fs, path = _filesystem(uri)
    return int(fs.size(path))


def info(uri: str) -> Listed:
    """What there is to know of one object now."""
    fs, path = _filesystem(uri)
    fs.invalidate_cache(path.rpartition("/")[0])
    return _listed(file_name(uri), uri, fs.info(path))


def list_files(root: str, leave_out: LeaveOut) -> list[Listed]:
    """Every object below a prefix, in no order; see `evo_core.storage.files.list_files`."""
    fs, top = _filesystem(root)
    fs.invalidate_cache()  # listings are remembered by the process otherwise
    found: dict[str, dict[str, Any]] = fs.find(top, detail=True)
    if not found and not fs.exists(top):
        raise FileNotFoundError(root)
    files, hidden, prefix = list[Listed](), set[str](), top.rstrip("/") + "/"
    for path, details in found.items():
        below = path.removeprefix(prefix)
        if not path.startswith(prefix) or details.get("type", "file") != "file" or path.endswith("/"):
            continue  # a folder, as a store makes them for its page
        if (found_hidden := _HIDDEN_PART.match(below)) is not None:
            hidden.add(found_hidden[0])  # of a folder once, as on disk
        else:
            files.append(_listed(below, f"{root.rstrip('/')}/{below}", details))
    for path in hidden:
        leave_out(HIDDEN, path)
    return files


def _filesystem(uri: str) -> tuple[Any, str]:
    """fsspec's file system for a location, and the path in it.

    Raises:
        DataError: what it needs is not installed, or the store cannot be reached.
    """
    try:
        import fsspec

        endpoint = os.environ.get("S3_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
        if (named := _BOTO3.fullmatch(uri)) is not None:
            uri, endpoint = f"s3://{named[1]}{named[3]}", f"http://{named[2]}"
        # Not url_to_fs, which takes a key with :: in it for a chain of stores.
        fs = fsspec.filesystem("s3", **({"endpoint_url": endpoint} if endpoint else {}))
        return fs, cast(str, fs._strip_protocol(uri.removeprefix("boto3:")))
    except ImportError as error:
        raise DataError(
            f"the package {error.name or 'that reads it'} is not installed", file=uri, hint="pip install fsspec s3fs"
        ) from None
    except Exception as error:
        raise DataError(f"this store cannot be reached ({error})", file=uri, hint=CREDENTIALS) from error


def _listed(path: str, uri: str, details: dict[str, Any]) -> Listed:
    modified = details.get("LastModified") or details.get("mtime") or 0
    seconds = modified.timestamp() if hasattr(modified, "timestamp") else float(modified)
    tag = str(details.get("ETag") or details.get("etag") or "").strip('"')
    return Listed(path, uri, int(details["size"]), seconds, tag=tag)
