"""What takes a request or a listing: an object's size, the objects below a prefix, opening, deleting, trying."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from typing import Any, BinaryIO, cast

from evo_core.storage.listed import HIDDEN, LeaveOut, Listed
from evo_core.storage.location import file_name
from evo_core.storage.s3.place import Place
from evo_core.storage.s3.stream import ObjectStream
from evo_core.storage.s3.transfer import in_threads, put
from evo_core.storage.s3.trouble import error_code, request

_BUFFER = 1 << 20
_AT_ONCE = 1000
"""Objects that one request may delete, or list."""

_ONE_BY_ONE = {"MissingContentMD5", "NotImplemented", "MethodNotAllowed", "InvalidRequest", "InvalidArgument"}
"""What stores say that take no request for several, or want a digest with it that boto3 no longer sends."""

_PROBE = ".evo-probe"
_HIDDEN_PART = re.compile(r"(?:[^/]*/)*?\.[^/]*")

# Every function raises what `evo_core.storage.s3.trouble.request` does.


def open_object(place: Place) -> BinaryIO:
    """Open an object for reading; the result can seek."""
    found = info(place)
    return io.BufferedReader(cast(Any, ObjectStream(place, found.size, found.tag)), buffer_size=_BUFFER)


def read(place: Place) -> bytes:
    """The content of a small object, by one request."""
    if not place.key:
        raise IsADirectoryError

    def attempt(client: Any) -> bytes:
        with closing(client.get_object(Bucket=place.bucket, Key=place.key)["Body"]) as body:
            return bytes(body.read())

    return request(place, attempt)


def info(place: Place) -> Listed:
    """What there is to know of one object now."""
    if not place.key:
        raise IsADirectoryError
    head = request(place, lambda client: client.head_object(Bucket=place.bucket, Key=place.key))
    return _listed(file_name(place.uri), place.uri, head["ContentLength"], head)


def is_object(place: Place) -> bool:
    """Whether there is such an object, and not only some below it."""
    try:
        return bool(info(place).path)
    except (FileNotFoundError, IsADirectoryError):
        return False


def list_objects(root: Place, leave_out: LeaveOut) -> list[Listed]:
    """Every object below a prefix, in no order; see `evo_core.storage.files.list_files`."""
    files, hidden, marked = list[Listed](), set[str](), not root.key
    for details in _below(root):
        marked = marked or details["Key"] == root.prefix
        if (file := _file(root, details)) is None:
            continue
        if (found_hidden := _HIDDEN_PART.match(file.path)) is not None:
            hidden.add(found_hidden[0])  # of a folder once, as on disk
        else:
            files.append(file)
    if not (files or hidden or marked):
        raise FileNotFoundError(root.uri)
    for path in hidden:
        leave_out(HIDDEN, path)
    return files


def every_object(root: Place) -> list[Listed]:
    """Every object below a prefix, hidden ones too."""
    return [file for details in _below(root) if (file := _file(root, details)) is not None]


def folders(root: Place) -> list[str]:
    """Names of the folders right below a prefix."""
    pages = _pages(root, {"Delimiter": "/"})
    return [
        each["Prefix"].removeprefix(root.prefix).rstrip("/")
        for page in pages
        for each in page.get("CommonPrefixes", ())
    ]


def is_empty(root: Place) -> bool:
    """Whether no object lies below a prefix."""
    return all(_file(root, details) is None for details in _below(root))


def delete(place: Place, *, last: str | None = None) -> None:
    """Remove an object and all below it; nothing happens where there is nothing.

    Args:
        last: path below it of an object that goes when all others are gone.
    """
    keys = [details["Key"] for details in _below(place)]
    if place.key:
        keys.append(place.key)
    if last is not None and (key := place.below(last).key) in keys:
        keys.remove(key)
        _delete(place, keys)
        keys = [key]
    _delete(place, keys)


def _delete(place: Place, keys: list[str]) -> None:
    bundles = [keys[at : at + _AT_ONCE] for at in range(0, len(keys), _AT_ONCE)]
    left = [key for some in in_threads(lambda some: _not_deleted(place, some), bundles) for key in some]
    in_threads(lambda key: _delete_one(place, key), left)


def _not_deleted(place: Place, keys: list[str]) -> list[str]:
    """Remove objects of a bucket by one request; returns those that the store does not take so: all, or none."""
    if len(keys) == 1:
        return keys
    wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

    def attempt(client: Any) -> list[str]:
        try:
            answer = client.delete_objects(Bucket=place.bucket, Delete=wanted)
        except client.exceptions.ClientError as error:
            if error_code(error) in _ONE_BY_ONE:
                return keys
            raise
        for failed in answer.get("Errors", ()):
            raise client.exceptions.ClientError({"Error": failed}, "DeleteObjects")
        return []

    return request(place, attempt)


def _delete_one(place: Place, key: str) -> None:
    request(place, lambda client: client.delete_object(Bucket=place.bucket, Key=key))


def abort_uploads(root: Place) -> None:
    """Take back the uploads below a prefix that were never completed: killed processes leave them.

    Raises:
        OSError: as ever; also where the store has no such request, or whoever asks may not make it.
    """
    following: dict[str, str] = {}
    while True:
        page = request(root, _uploads({"Bucket": root.bucket, "Prefix": root.prefix, **following}))
        for upload in page.get("Uploads", ()):
            where = {"Bucket": root.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            request(root, _aborting(where))
        if not page.get("IsTruncated"):
            return
        following = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def try_writing(folder: Place) -> None:
    """Write a little below a prefix, and take it away again."""
    probe = folder.below(_PROBE)
    put(probe, b"")
    try:
        delete(probe)
    except PermissionError:
        pass  # who may write may not always delete; it is hidden, and always the same one


def _below(root: Place) -> Iterator[dict[str, Any]]:
    """What a store says of each object below a prefix."""
    for page in _pages(root):
        yield from page.get("Contents", ())


def _pages(root: Place, how: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """The answers that list what is below a prefix."""
    following: dict[str, str] = {}
    while True:
        where = {"Bucket": root.bucket, "Prefix": root.prefix, "MaxKeys": _AT_ONCE, **(how or {}), **following}
        page = request(root, _listing(where))
        yield page
        if not page.get("IsTruncated"):
            return
        following = {"ContinuationToken": page["NextContinuationToken"]}


def _file(root: Place, details: dict[str, Any]) -> Listed | None:
    """What a listing says of an object; None of the mark of a folder, as a store makes them for its page."""
    path = details["Key"].removeprefix(root.prefix)
    if not path or path.endswith("/"):
        return None
    return _listed(path, root.below(path).uri, details["Size"], details)


def _listing(where: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda client: client.list_objects_v2(**where)


def _uploads(where: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda client: client.list_multipart_uploads(**where)


def _aborting(where: dict[str, Any]) -> Callable[[Any], Any]:
    def attempt(client: Any) -> None:
        with suppress(client.exceptions.NoSuchUpload):
            client.abort_multipart_upload(**where)

    return attempt


def _listed(path: str, uri: str, size: int, details: dict[str, Any]) -> Listed:
    tag = str(details.get("ETag") or "").strip('"')
    return Listed(path, uri, int(size), details["LastModified"].timestamp(), tag=tag)
